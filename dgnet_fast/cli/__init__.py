"""What the commands share: the parser, the options of the config tree, groups of options that several commands have."""
