"""pytest puts this folder on the import path because this file is in it; `recorded` is then importable everywhere."""
