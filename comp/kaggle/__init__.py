"""The same command on Kaggle: the pack, the sandbox, the client, the jobs."""
