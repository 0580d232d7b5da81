//! Socket specs: `tcp://IDENTITY@host:port#bind` and their kin.
