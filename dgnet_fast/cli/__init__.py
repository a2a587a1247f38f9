"""What all commands share: the parser, the options of the configuration tree, and groups of options that several
commands have.
"""
