"""The kinds of tokenizer that `tokenizer=` chooses from: trained on the corpus, or ready made."""
