"""Helpers of the tests: models, engines, stand-ins, oracles, and programs that run in processes of their own."""
