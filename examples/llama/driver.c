/* SPDX-License-Identifier: Apache-2.0 */
#include "driver.h"

#include <dlfcn.h>
#include <string.h>

bool driver_open(driver *d) {
    void *lib = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL), *found;
    if (!lib)
        return false;
#define X(name, symbol, params) \
    found = dlsym(lib, #symbol); \
    memcpy(&d->name, &found, sizeof found); \
    if (!found) \
        return false;
    DRIVER_FUNCTIONS(X)
#undef X
    return true;
}
