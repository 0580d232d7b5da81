"""A module that is never done with being imported."""

import sys
import threading

print("it starts, and has much to do", file=sys.stderr, flush=True)
threading.Event().wait()
