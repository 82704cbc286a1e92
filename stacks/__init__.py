"""The life of a stack: handles, engines, backends, records. Knows no target."""
