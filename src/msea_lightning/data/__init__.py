"""Data: utterances, the store, readers of published files, and what feeds the model.

The way of the data: a reader (:mod:`.readers`) turns published files into utterances
(:mod:`.utterance`), :mod:`.prepare` writes them into a store (:mod:`.store`) once, and the data
module (:mod:`.module`) makes batches of what the store holds.
"""
