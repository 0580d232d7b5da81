"""An application that is not there: its module raises while it is imported."""

raise RuntimeError("no configuration for this shop")
