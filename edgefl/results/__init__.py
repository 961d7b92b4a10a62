"""What a run leaves for a person: the report, pictures, models that predict."""
