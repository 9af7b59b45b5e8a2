"""Benchmarks, the images behind them, and the samples made of both."""
