"""What a model receives for a batch of documents."""

import numpy as np

from fusestore.models.batch_layout import BatchLayout

DOCUMENTS = [np.array(ids, np.int32) for ids in ([5, 6, 7], [8], [9, 10])]
LENGTHS = np.array([3, 1, 2])


def test_padded_documents_have_a_row_each_and_no_positions():
    input_ids, position_ids = BatchLayout.padded(LENGTHS).tensors(DOCUMENTS, "cpu")
    assert input_ids.tolist() == [[5, 6, 7], [8, 0, 0], [9, 10, 0]]
    assert position_ids is None


def test_positions_begin_again_with_every_document():
    input_ids, position_ids = BatchLayout.one_row(LENGTHS).tensors(DOCUMENTS, "cpu")
    assert input_ids.tolist() == [[5, 6, 7, 8, 9, 10]]
    assert position_ids.tolist() == [[0, 1, 2, 0, 0, 1]]


def test_padding_of_packed_rows_is_documents_of_one_token():
    layout = BatchLayout(LENGTHS, np.array([0, 0, 1]), np.array([0, 3, 0]), 2, 5)
    input_ids, position_ids = layout.tensors(DOCUMENTS, "cpu")
    assert input_ids.tolist() == [[5, 6, 7, 8, 0], [9, 10, 0, 0, 0]]
    assert position_ids.tolist() == [[0, 1, 2, 0, 0], [0, 1, 0, 0, 0]]
    assert layout.slots().tolist() == [0, 1, 2, 3, 5, 6]
    assert layout.positions().tolist() == [0, 1, 2, 0, 0, 1]


def test_one_document_in_one_row_is_not_packed():
    layout = BatchLayout.one_row(LENGTHS[:1])
    assert not layout.is_packed
    assert layout.size == 3
