//! Tests of the codec: every timer with a given `now`, every input cut everywhere.
