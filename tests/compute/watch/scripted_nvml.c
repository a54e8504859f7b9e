/* A driver's library for machines that have none, so that NVIDIA's own binding is run against
   something: a card "GPU-abc" with a slice "MIG-def", and three XID errors. It knows no power
   limit, as an old driver. No figure of it is a measurement. */
#include <string.h>
#include <unistd.h>

typedef void *device;
typedef unsigned long long u64;
enum { OK = 0, REFUSED = 3, NOT_FOUND = 6, TIMEOUT = 10, LOST = 15, XID = 8 };
static char card, slice, set;
static int told;

int nvmlInitWithFlags(unsigned flags) { return OK; }
int nvmlShutdown(void) { return OK; }
const char *nvmlErrorString(int code) { return "as it was written down"; }

int nvmlDeviceGetHandleByUUID(const char *name, device *found) {
  *found = strcmp(name, "GPU-abc") ? &slice : &card;
  return *found == &card || !strcmp(name, "MIG-def") ? OK : NOT_FOUND;
}
int nvmlDeviceGetUUID(device of, char *name, unsigned length) {
  strcpy(name, of == &card ? "GPU-abc" : "MIG-def");
  return OK;
}
int nvmlDeviceGetMigMode(device of, unsigned *now, unsigned *later) {
  *now = *later = 0;
  return of == &card ? OK : REFUSED;
}
int nvmlDeviceIsMigDeviceHandle(device of, unsigned *is_slice) {
  *is_slice = of == &slice;
  return OK;
}
int nvmlDeviceGetDeviceHandleFromMigDeviceHandle(device of, device *whole) {
  *whole = &card;
  return OK;
}
int nvmlDeviceGetGpuInstanceId(device of, unsigned *number) {
  *number = 4;
  return OK;
}
int nvmlDeviceGetMemoryInfo(device of, struct { u64 total, free, used; } *memory) {
  memory->total = 100, memory->free = 70, memory->used = 30;
  return OK;
}
int nvmlDeviceGetUtilizationRates(device of, struct { unsigned gpu, memory; } *rates) {
  rates->gpu = 37, rates->memory = 12;
  return of == &card ? OK : REFUSED;
}
int nvmlDeviceGetTemperature(device of, int sensor, unsigned *celsius) {
  *celsius = 54;
  return of == &card ? OK : REFUSED;
}
int nvmlDeviceGetPowerUsage(device of, unsigned *milliwatts) {
  *milliwatts = 412500;
  return of == &card ? OK : REFUSED;
}
int nvmlEventSetCreate(device *made) {
  *made = &set;
  return OK;
}
int nvmlEventSetFree(device of) { return OK; }
int nvmlDeviceRegisterEvents(device of, u64 kinds, device into) {
  return of == &card && kinds == XID ? OK : REFUSED;
}
/* of the card, of another slice, of this one; then the card is gone, then nothing happens */
int nvmlEventSetWait_v2(device of,
                        struct { device from; u64 kind, number; unsigned slice, compute; } *event,
                        unsigned milliseconds) {
  static const unsigned numbers[] = {79, 31, 13}, slices[] = {0xFFFFFFFF, 9, 4};
  if (told == 3) return told++, LOST;
  if (told > 3) return usleep(1000 * milliseconds), TIMEOUT;
  event->from = &card, event->kind = XID, event->compute = 0;
  event->number = numbers[told], event->slice = slices[told++];
  return OK;
}
