//! Claims about the tnetstring codec: examples, hostile inputs, and laws on random values.
