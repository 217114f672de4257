"""Training and judging models: crappify, dataset, losses, fit, evaluate."""
