"""The command `tender`: the only part that prints, reads the environment or ends the process.

main picks, then one file a subcommand, which imports what it needs. Nobody imports this package. A plain run starts no
interpreter.
"""
