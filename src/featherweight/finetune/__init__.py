"""Training what stays free in a compressed output: norms and dense low-rank factors; codes, embeddings and heads stay."""
