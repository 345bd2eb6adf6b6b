"""The ``livetalk`` command, one file per subcommand."""
