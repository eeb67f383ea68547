"""Compiles the Triton kernel that interpolates for an H200 (no GPU needed) and prints its PTX."""

from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from maskmill.generate import triton_kernels as kernels

POINTERS = {"logits": "*fp32", "floats": "*fp32"}
SCALARS = {"size": "i32", "max_tiles": "i32", "words_a_mask": "i32"}
LEVELS = {"inner_at": "fp32", "mask_at": "fp32", "outer_at": "fp32"}

if __name__ == "__main__":
    types = {**POINTERS, **SCALARS, **LEVELS}
    signature = {name: types.get(name, "*i32") for name in kernels.evaluate.arg_names}
    source = ASTSource(fn=kernels.evaluate, signature=signature, constexprs={})
    print(compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 1}).asm["ptx"])
