"""What each protocol identifier stands for, in a sentence or two that belong beside its numbers.

The number behind the slash changes whenever the same features would give another result.
"""

KNN = "knn/1"
LINEAR_ORIGINAL = "linear_original/1"
LINEAR_GRID = "linear_grid/1"
LOGISTIC = "logistic/1"
DAVIS = "davis2017/1"
REVISITED = "revisited/1"
COPYDAYS = "copydays/1"
VERIFICATION_INSIGHTFACE = "verification_insightface/1"
VERIFICATION_ASKD = "verification_askd/1"
TINYFACE = "tinyface/1"
IJB = "ijb/1"
FINETUNED = "finetuned/1"

MEANING = {
    KNN: "Weighted k-nearest neighbours on frozen features: cosine similarity s, votes exp(s / T); top-1 and top-5 of "
    "the test images (Wu et al. 2018; DINO's evaluation).",
    LINEAR_ORIGINAL: "A linear classifier on frozen features as in the DINO paper: random resized crops and flips, "
    "SGD with a cosine over 100 epochs; the accuracy after the last epoch, never the best on test.",
    LINEAR_GRID: "Linear classifiers on frozen features of centre crops, one for each learning rate and choice of "
    "features, trained at once; the best on a held-out part of the training set is trained again on all of it and then "
    "measured on test.",
    LOGISTIC: "Multinomial logistic regression on standardised frozen features (scikit-learn's), its strength chosen "
    "on a held-out part of the training set.",
    DAVIS: "Masks of the first frame carried through a video by similarity of patch features alone (DAVIS 2017, "
    "semi-supervised): region similarity J, contour accuracy F, and their mean.",
    REVISITED: "Landmark retrieval by cosine similarity on revisited Oxford or Paris (Radenovic et al. 2018): mean "
    "average precision, without and with hard images.",
    COPYDAYS: "Copy detection on the strongly altered images of Copydays among distractors: mean average precision.",
    FINETUNED: "Accuracy of a fine-tuned network's own classifier on centre crops of the test images; the best "
    "checkpoint was chosen on them, the last was not.",
    VERIFICATION_INSIGHTFACE: "Do two faces belong to one person? InsightFace's protocol: features of an image and its "
    "mirror image added, squared distances, a threshold from nine folds for the tenth. Not comparable with A-SKD's.",
    VERIFICATION_ASKD: "The same question by A-SKD's protocol: the two features side by side, less the mean of nine "
    "folds, cosines. Not comparable with InsightFace's: other numbers on the same features.",
    TINYFACE: "Whose face is it? The nearest of 158,000 faces of few pixels (TinyFace, Cheng et al. 2018) by cosine "
    "similarity: share of probes with their person among the first k.",
    IJB: "Do two sets of faces belong to one person? IJB-B's and IJB-C's 1:1 verification of templates by cosine "
    "similarity: true accepts at rates of false ones.",
}
