//! Integration tests: config_commands.
