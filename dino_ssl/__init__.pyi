from dino_ssl.config import PretrainConfig as PretrainConfig
from dino_ssl.config_yaml import read_config as read_config
from dino_ssl.data.crops import MultiCrop as MultiCrop
from dino_ssl.data.crops import dino_recipe as dino_recipe
from dino_ssl.data.sources import open_source as open_source
from dino_ssl.dino.centering import Center as Center
from dino_ssl.dino.losses import dino_loss as dino_loss
from dino_ssl.dino.losses import teacher_probabilities as teacher_probabilities
from dino_ssl.dino.method import SelfDistillation as SelfDistillation
from dino_ssl.evaluation.embedding import embed as embed
from dino_ssl.evaluation.feature_store import Extraction as Extraction
from dino_ssl.evaluation.feature_store import features_of as features_of
from dino_ssl.evaluation.knn import knn_accuracy as knn_accuracy
from dino_ssl.evaluation.linear_selection import probe_grid as probe_grid
from dino_ssl.models.attention_map import AttentionMap as AttentionMap
from dino_ssl.models.backbone import build_backbone as build_backbone
from dino_ssl.models.encoder import Encoder as Encoder
from dino_ssl.models.heads import DINOHead as DINOHead
from dino_ssl.models.weights import load_encoder as load_encoder
from dino_ssl.training.pretraining import pretrain as pretrain

__version__: str
