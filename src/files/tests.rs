//! Files as they are asked for, on a disk of the test's own.
