//! Who gets the next request. Pure: no I/O, time is given in.
