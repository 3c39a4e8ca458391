"""Pictures, of comparisons, plans and samples. They take rows and plans, and know no Comparison."""
