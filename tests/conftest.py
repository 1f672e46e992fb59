"""Its presence puts the repository on the import path, so that tests find `tests.recorded`."""
