"""For users and contributors: a fake launcher, and the contract that every launcher keeps, as a suite to inherit.

`launchers.testing.fake` needs nothing beyond the package; `launchers.testing.contract` needs pytest.
"""
