//! ASGI 3: applications on an event loop.
