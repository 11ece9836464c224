//! Weight files of Aquatint: files to named tensors and back.
