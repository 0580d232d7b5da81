//! HTTP/1 as a pure core: heads, body framing, the reply scanner.
