"""The ``vision-ssm`` command: parse, call, print. No logic, and nothing imports it."""
