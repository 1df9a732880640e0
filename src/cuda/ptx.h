/* SPDX-License-Identifier: Apache-2.0 */
/* One kernel's PTX out of a file's, which is as tools/ptx.py writes it. */
#ifndef PRHS_CUDA_PTX_H
#define PRHS_CUDA_PTX_H

/* malloc()ed PTX of this kernel and of what all kernels of the file share, so that the driver compiles no others; `text` is used up. NULL: it
   is not there, the text is not such a one, or there is no host memory. */
char *prhs_nv_ptx(char *text, const char *kernel);

#endif
