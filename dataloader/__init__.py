"""KorQuAD files to training batches: load, clean, pair and split, batch. Imports without torch."""

from dataloader.batches import build_dataloader, collate_input_examples
from dataloader.cache import load_cached_dataset
from dataloader.cleaning import clean_html_text
from dataloader.loader import (
    DatasetError,
    accumulate_all_data,
    get_all_json_files,
    load_entire_dataset,
    load_files_parallel,
    load_json_file,
)
from dataloader.pairs import RetrievalSet, prepare_retrieval_sets, prepare_training_data, question_articles, window_size

__all__ = [
    "DatasetError",
    "RetrievalSet",
    "accumulate_all_data",
    "build_dataloader",
    "clean_html_text",
    "collate_input_examples",
    "get_all_json_files",
    "load_cached_dataset",
    "load_entire_dataset",
    "load_files_parallel",
    "load_json_file",
    "prepare_retrieval_sets",
    "prepare_training_data",
    "question_articles",
    "window_size",
]
