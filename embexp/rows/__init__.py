"""A RetrievalSet as what a loss reads: shapes, negatives, teachers' scores, batches without conflicts."""
