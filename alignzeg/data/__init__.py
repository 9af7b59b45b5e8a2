"""Benchmarks, the pictures behind them, and the samples made of both."""
