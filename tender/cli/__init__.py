"""The command `tender`: the only part that prints, reads the environment or ends the process.

main picks, then one file a subcommand. Nobody imports this package. The road `tender app.elf` may import
next to nothing (tests/unit/test_cli_imports.py holds the list): an interpreter's imports cost more than
a unikernel's boot. Everything that only an error, --help or another subcommand needs is imported there.
"""
