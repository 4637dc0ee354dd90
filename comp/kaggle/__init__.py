"""The same command on Kaggle: one packed script, the offline sandbox, the client, the jobs."""
