"""Detection and segmentation: Mask R-CNN on the backbone of a run, and tables of such trainings."""
