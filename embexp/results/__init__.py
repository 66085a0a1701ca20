"""What a run leaves: result.json and its neighbours, written, found again and compared."""
