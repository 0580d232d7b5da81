//! The handlers behind one route.
