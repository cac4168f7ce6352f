/* A library with NVML's names, for three boards: one counts energy, one tells its power only, one is lost. The counter is read from the file that
   the environment variable JEVONS_TEST_NVML names, in millijoules. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct board *device;
struct board { const char *name, *uuid; };
static struct board boards[2] = { { "Fake H100", "GPU-1" }, { "Fake P100", "GPU-2" } };

enum { SUCCESS = 0, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, GPU_IS_LOST = 15 };

int nvmlInit_v2(void) { return SUCCESS; }
int nvmlShutdown(void) { return SUCCESS; }

int nvmlDeviceGetCount_v2(unsigned *count) { *count = 3; return SUCCESS; }

int nvmlDeviceGetHandleByIndex_v2(unsigned index, device *out) {
    if (index > 1) return index == 2 ? GPU_IS_LOST : INVALID_ARGUMENT;
    *out = &boards[index];
    return SUCCESS;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, device *out) {
    for (int i = 0; i < 2; i++)
        if (!strcmp(uuid, boards[i].uuid)) { *out = &boards[i]; return SUCCESS; }
    return NOT_FOUND;
}

int nvmlDeviceGetName(device d, char *name, unsigned length) { snprintf(name, length, "%s", d->name); return SUCCESS; }
int nvmlDeviceGetUUID(device d, char *uuid, unsigned length) { snprintf(uuid, length, "%s", d->uuid); return SUCCESS; }

int nvmlDeviceGetTotalEnergyConsumption(device d, unsigned long long *mj) {
    const char *path = getenv("JEVONS_TEST_NVML");
    FILE *file = d == &boards[0] && path ? fopen(path, "r") : NULL;
    int found = file && fscanf(file, "%llu", mj) == 1;
    if (file) fclose(file);
    return found ? SUCCESS : NOT_SUPPORTED;
}

int nvmlDeviceGetPowerUsage(device d, unsigned *mw) { *mw = d == &boards[1] ? 50000 : 999000; return SUCCESS; }
