"""Fine-tuning and drawing with any generator, placed on Ray Train and an actor pool.

Imports `data`, `models` and what is below them. What a fine-tuning minimises is the method's `Objective`.
"""
