//! The configuration: model, SQLite, `.conf`.
