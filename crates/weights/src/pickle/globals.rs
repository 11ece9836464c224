//! The classes and functions that a checkpoint may name, and what they stand for here.

use crate::DType;

/// What a name in a pickle stands for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Global {
    /// `OrderedDict` and `dict`: an empty dictionary.
    Dict,
    /// `_rebuild_tensor` and `_rebuild_tensor_v2`: a tensor over a storage.
    Tensor,
    /// `_rebuild_tensor_v3`, which names the type too.
    TypedTensor,
    /// `_rebuild_parameter`: its first argument.
    First,
    /// A class of storages, of one type or of bytes.
    Storage(Option<DType>),
    /// A type, as an object of its own.
    DType(DType),
    /// What other programs need and we do not look at: its value is nothing.
    Ignored,
}

/// What a checkpoint may name besides storages and types.
const NAMES: &[(&str, &str, Global)] = &[
    ("collections", "OrderedDict", Global::Dict),
    ("collections", "defaultdict", Global::Ignored),
    ("collections", "Counter", Global::Ignored),
    ("builtins", "dict", Global::Dict),
    ("builtins", "set", Global::Ignored),
    ("__builtin__", "set", Global::Ignored),
    ("torch._utils", "_rebuild_tensor", Global::Tensor),
    ("torch._utils", "_rebuild_tensor_v2", Global::Tensor),
    ("torch._utils", "_rebuild_tensor_v3", Global::TypedTensor),
    ("torch._utils", "_rebuild_parameter", Global::First),
    (
        "torch._utils",
        "_rebuild_parameter_with_state",
        Global::First,
    ),
    ("torch._tensor", "_rebuild_from_type_v2", Global::Ignored),
    ("torch", "Size", Global::Ignored),
    ("torch", "device", Global::Ignored),
    ("torch", "Tensor", Global::Ignored),
    ("torch.nn.parameter", "Parameter", Global::Ignored),
    ("torch.serialization", "_get_layout", Global::Ignored),
    // Numbers of numpy, in what trainers note beside the weights.
    ("numpy", "dtype", Global::Ignored),
    ("numpy", "ndarray", Global::Ignored),
    ("numpy.core.multiarray", "scalar", Global::Ignored),
    ("numpy.core.multiarray", "_reconstruct", Global::Ignored),
    ("numpy._core.multiarray", "scalar", Global::Ignored),
    ("numpy._core.multiarray", "_reconstruct", Global::Ignored),
    ("_codecs", "encode", Global::Ignored),
    // Names under which Lightning notes the state of its callbacks.
    (
        "pytorch_lightning.callbacks.model_checkpoint",
        "ModelCheckpoint",
        Global::Ignored,
    ),
    (
        "pytorch_lightning.callbacks.early_stopping",
        "EarlyStopping",
        Global::Ignored,
    ),
    (
        "pytorch_lightning.utilities.parsing",
        "AttributeDict",
        Global::Dict,
    ),
    ("argparse", "Namespace", Global::Ignored),
];

/// PyTorch's name of a type, its storage class, and our type where files may hold it.
const TYPES: &[(&str, &str, DType)] = &[
    ("float64", "DoubleStorage", DType::F64),
    ("float32", "FloatStorage", DType::F32),
    ("float16", "HalfStorage", DType::F16),
    ("bfloat16", "BFloat16Storage", DType::Bf16),
    ("float8_e4m3fn", "Float8_e4m3fnStorage", DType::F8E4M3),
    ("float8_e5m2", "Float8_e5m2Storage", DType::F8E5M2),
    ("int64", "LongStorage", DType::I64),
    ("int32", "IntStorage", DType::I32),
    ("int16", "ShortStorage", DType::I16),
    ("int8", "CharStorage", DType::I8),
    ("uint8", "ByteStorage", DType::U8),
    ("bool", "BoolStorage", DType::Bool),
];

impl Global {
    /// What `module.name` stands for, when a checkpoint may name it.
    pub(super) fn find(module: &str, name: &str) -> Option<Global> {
        if let Some(row) = NAMES.iter().find(|row| (row.0, row.1) == (module, name)) {
            return Some(row.2);
        }
        match (module, name) {
            ("torch.storage", "UntypedStorage") | ("torch", "UntypedStorage") => {
                return Some(Global::Storage(None));
            }
            ("torch" | "torch.cuda", _) => {}
            _ => return None,
        }
        if let Some(row) = TYPES.iter().find(|row| row.1 == name) {
            return Some(Global::Storage(Some(row.2)));
        }
        let row = TYPES.iter().find(|row| module == "torch" && row.0 == name);
        row.map(|row| Global::DType(row.2))
    }
}
