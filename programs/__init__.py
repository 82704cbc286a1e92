"""The Pulumi program of each target. Knows its cloud SDK; knows no launcher."""
