"""Model parts; importing this package does not register them, `import alignzeg` does."""
