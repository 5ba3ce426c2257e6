/* A scripted libnvidia-ml.so.1: the part of NVML that gpuspawner uses, for tests without a GPU.
 *
 * Written from the NVML API Reference (r580). The file named by GPUSPAWNER_TEST_NVML says what there
 * is; it is read again whenever it changes. One record a line, "#" begins a comment, "_" in a name
 * stands for a space:
 *
 *   driver 580.159.04                version of the driver
 *   cuda 13000                       CUDA version, as NVML counts it
 *   init 18                          nvmlInit answers this code
 *   gpu uuid=GPU-… name=H100 memory=85520809984 used=0 cc=9.0 cores=16896 bus=5120 clock=2619
 *       events=1 mig=0 lost=0 remap_pending=0 remap_failure=0 retired=0 recovery=0 util=0
 *       mode=0 celsius=0 draw_mw=0 limit_mw=0     (one line; 0 of the last three: not supported)
 *   mig gpu=0 uuid=MIG-… gi=1 ci=0 memory=… sms=16 slices=1 compute=1 name=…      (name: the GPU's if left out)
 *   process gpu=0 pid=4711 memory=… mps=0 draws=0 gi=-1 ci=-1     memory=-1: NVML doesn't say;
 *       draws=1: in the list of graphics alone
 *   use gpu=0 pid=4711 sm=23 mem=5                       a sample of use by process at each call, as of now
 *   fault function=nvmlDeviceGetName gpu=0 code=999      gpu=-1: any
 *   hang function=nvmlDeviceGetMemoryInfo gpu=0          until the line is gone
 *   xid seq=1 gpu=0 code=79 gi=-1                        gpu=-1: without a device; each is sent once
 *
 * A GPU's `lost` is the code that every call on it answers (15 is lost, 16 needs a reset). Changes
 * that a caller makes (the compute mode) are appended to the file with the suffix ".log".
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

typedef unsigned long long u64;
typedef struct handle { int gpu, mig; } *device_t;
enum { OK = 0, UNINITIALIZED = 1, INVALID = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, TOO_SMALL = 7, NO_DRIVER = 9, TIMEOUT = 10 };
enum { MOST = 64, MOST_LINES = 1024 };

struct gpu {
    char uuid[96], name[96];
    u64 memory, used, cores, bus, clock, events, mig, lost, remap_pending, remap_failure, retired, recovery, util, celsius, draw_mw, limit_mw;
    int major, minor;
};
struct mig { int gpu, gi, ci, sms, slices, compute; char uuid[96], name[96]; u64 memory; };
struct process { int gpu, gi, ci, mps, draws; unsigned pid; long long memory; };
struct use { int gpu; unsigned pid, sm, mem; };
struct fault { char function[96]; int gpu, code, hang; };
struct xid { u64 seq, code; int gpu, gi; };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct stat seen;
static int initialized, init_code, gpus, migs, processes, uses, faults, xids, modes[MOST], mode_set[MOST];
static int cuda;
static char driver[96], script[4096];
static struct gpu gpu[MOST];
static struct mig mig[MOST];
static struct process process[MOST_LINES];
static struct use use[MOST_LINES];
static struct fault fault[MOST_LINES];
static struct xid xid[MOST_LINES];
static struct handle whole[MOST], part[MOST];

static const char *text_of(const char *line, const char *key, char *into, size_t size) {
    char pattern[64];
    snprintf(pattern, sizeof pattern, " %s=", key);
    const char *at = strstr(line, pattern);
    if (!at) return NULL;
    at += strlen(pattern);
    size_t length = strcspn(at, " \t\n");
    if (length >= size) length = size - 1;
    memcpy(into, at, length);
    into[length] = 0;
    return into;
}

static long long number_of(const char *line, const char *key, long long otherwise) {
    char text[96];
    return text_of(line, key, text, sizeof text) ? strtoll(text, NULL, 0) : otherwise;
}

static void read_gpu(const char *line) {
    struct gpu *it = &gpu[gpus];
    char text[96] = "0.0";
    memset(it, 0, sizeof *it);
    text_of(line, "uuid", it->uuid, sizeof it->uuid);
    text_of(line, "name", it->name, sizeof it->name);
    for (char *c = it->name; *c; c++) if (*c == '_') *c = ' ';
    text_of(line, "cc", text, sizeof text);
    sscanf(text, "%d.%d", &it->major, &it->minor);
    it->memory = number_of(line, "memory", 0);
    it->used = number_of(line, "used", 0);
    it->cores = number_of(line, "cores", 0);
    it->bus = number_of(line, "bus", 0);
    it->clock = number_of(line, "clock", 0);
    it->events = number_of(line, "events", 1);
    it->mig = number_of(line, "mig", 0);
    it->lost = number_of(line, "lost", 0);
    it->remap_pending = number_of(line, "remap_pending", 0);
    it->remap_failure = number_of(line, "remap_failure", 0);
    it->retired = number_of(line, "retired", 0);
    it->recovery = number_of(line, "recovery", 0);
    it->util = number_of(line, "util", 0);
    it->celsius = number_of(line, "celsius", 0);
    it->draw_mw = number_of(line, "draw_mw", 0);
    it->limit_mw = number_of(line, "limit_mw", 0);
    if (!mode_set[gpus]) modes[gpus] = (int)number_of(line, "mode", 0);
    whole[gpus] = (struct handle){gpus, -1};
    gpus++;
}

static void read_mig(const char *line) {
    struct mig *it = &mig[migs];
    memset(it, 0, sizeof *it);
    it->gpu = number_of(line, "gpu", 0);
    it->gi = number_of(line, "gi", 0);
    it->ci = number_of(line, "ci", 0);
    it->sms = number_of(line, "sms", 0);
    it->slices = number_of(line, "slices", 1);
    it->compute = number_of(line, "compute", it->slices);
    it->memory = number_of(line, "memory", 0);
    text_of(line, "uuid", it->uuid, sizeof it->uuid);
    text_of(line, "name", it->name, sizeof it->name);
    for (char *c = it->name; *c; c++) if (*c == '_') *c = ' ';
    part[migs] = (struct handle){it->gpu, migs};
    migs++;
}

static void read_fault(const char *line, int hang) {
    struct fault *it = &fault[faults++];
    *it = (struct fault){"", number_of(line, "gpu", -1), number_of(line, "code", 999), hang};
    text_of(line, "function", it->function, sizeof it->function);
}

static void read_line(const char *line) {
    if (!strncmp(line, "driver ", 7)) sscanf(line + 7, "%95s", driver);
    else if (!strncmp(line, "cuda ", 5)) cuda = atoi(line + 5);
    else if (!strncmp(line, "init ", 5)) init_code = atoi(line + 5);
    else if (!strncmp(line, "gpu ", 4) && gpus < MOST) read_gpu(line);
    else if (!strncmp(line, "mig ", 4) && migs < MOST) read_mig(line);
    else if (!strncmp(line, "process ", 8) && processes < MOST_LINES)
        process[processes++] = (struct process){number_of(line, "gpu", 0), number_of(line, "gi", -1),
            number_of(line, "ci", -1), number_of(line, "mps", 0), number_of(line, "draws", 0), number_of(line, "pid", 0), number_of(line, "memory", 0)};
    else if (!strncmp(line, "use ", 4) && uses < MOST_LINES)
        use[uses++] = (struct use){number_of(line, "gpu", 0), number_of(line, "pid", 0), number_of(line, "sm", 0), number_of(line, "mem", 0)};
    else if (!strncmp(line, "fault ", 6) && faults < MOST_LINES) read_fault(line, 0);
    else if (!strncmp(line, "hang ", 5) && faults < MOST_LINES) read_fault(line, 1);
    else if (!strncmp(line, "xid ", 4) && xids < MOST_LINES)
        xid[xids++] = (struct xid){number_of(line, "seq", 0), number_of(line, "code", 0), number_of(line, "gpu", -1),
                                   number_of(line, "gi", -1)};
}

/* With the lock held. A missing file is a machine without a driver. */
static void reload(void) {
    const char *path = getenv("GPUSPAWNER_TEST_NVML");
    struct stat now;
    if (!path || stat(path, &now)) { init_code = NO_DRIVER; gpus = 0; return; }
    if (now.st_ino == seen.st_ino && now.st_size == seen.st_size && now.st_mtim.tv_sec == seen.st_mtim.tv_sec &&
        now.st_mtim.tv_nsec == seen.st_mtim.tv_nsec) return;
    FILE *file = fopen(path, "r");
    if (!file) return;
    if (strcmp(path, script)) {  /* another script, another machine: modes that were set are gone */
        memset(mode_set, 0, sizeof mode_set);
        snprintf(script, sizeof script, "%s", path);
    }
    char line[1024];
    init_code = gpus = migs = processes = uses = faults = xids = 0;
    cuda = 0;
    driver[0] = 0;
    while (fgets(line, sizeof line, file)) if (line[0] != '#') read_line(line);
    fclose(file);
    seen = now;
}

/* What `function` on GPU `on` (-1: none) answers; waits while it is scripted to hang. */
static int enter(const char *function, int on) {
    for (;;) {
        int code = OK, hang = 0;
        pthread_mutex_lock(&lock);
        reload();
        if (on >= 0 && on < gpus && gpu[on].lost) code = (int)gpu[on].lost;
        for (int i = 0; i < faults; i++) {
            if (strcmp(fault[i].function, function) || (fault[i].gpu >= 0 && fault[i].gpu != on)) continue;
            if (fault[i].hang) hang = 1;
            else code = fault[i].code;
        }
        if (!initialized) code = UNINITIALIZED;
        pthread_mutex_unlock(&lock);
        if (!hang) return code;
        usleep(10000);
    }
}

#define ENTER(on) do { int code_ = enter(__func__, (on)); if (code_) return code_; } while (0)
#define DEVICE(handle) struct gpu *it = &gpu[(handle)->gpu]; (void)it; ENTER((handle)->gpu)
#define WHOLE(handle) DEVICE(handle); if ((handle)->mig >= 0) return NOT_SUPPORTED
#define GIVE(into, value) do { if (!(value)) return NOT_SUPPORTED; *(into) = (value); return OK; } while (0)

static int give_text(char *into, unsigned size, const char *text) {
    if (strlen(text) + 1 > size) return TOO_SMALL;
    strcpy(into, text);
    return OK;
}

int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    enter(__func__, -1);  /* only to hang there */
    pthread_mutex_lock(&lock);
    memset(&seen, 0, sizeof seen);
    reload();
    int code = init_code;
    if (!code) initialized++;
    pthread_mutex_unlock(&lock);
    return code;
}
int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) {
    if (!initialized) return UNINITIALIZED;
    initialized--;
    return OK;
}
const char *nvmlErrorString(int code) { return code ? "Scripted error" : "Success"; }

int nvmlSystemGetDriverVersion(char *into, unsigned size) { ENTER(-1); return give_text(into, size, driver); }
int nvmlSystemGetNVMLVersion(char *into, unsigned size) { ENTER(-1); return give_text(into, size, driver); }
int nvmlSystemGetCudaDriverVersion_v2(int *into) { ENTER(-1); GIVE(into, cuda); }
int nvmlSystemGetCudaDriverVersion(int *into) { ENTER(-1); GIVE(into, cuda); }

int nvmlDeviceGetCount_v2(unsigned *into) { ENTER(-1); *into = gpus; return OK; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, device_t *into) {
    ENTER((int)index);
    if ((int)index >= gpus) return INVALID;
    *into = &whole[index];
    return OK;
}
int nvmlDeviceGetHandleByUUID(const char *uuid, device_t *into) {
    ENTER(-1);
    /* As the real one: it asks one GPU after the other, so that one that hangs holds up every look-up. */
    for (int i = 0; i < gpus; i++) {
        int code = enter(__func__, i);
        if (strcmp(gpu[i].uuid, uuid)) continue;
        *into = &whole[i];
        return code;
    }
    for (int i = 0; i < migs; i++) if (!strcmp(mig[i].uuid, uuid)) { ENTER(mig[i].gpu); *into = &part[i]; return OK; }
    return NOT_FOUND;
}
int nvmlDeviceGetUUID(device_t on, char *into, unsigned size) {
    DEVICE(on);
    return give_text(into, size, on->mig >= 0 ? mig[on->mig].uuid : it->uuid);
}
int nvmlDeviceGetName(device_t on, char *into, unsigned size) { DEVICE(on); return give_text(into, size, on->mig >= 0 && mig[on->mig].name[0] ? mig[on->mig].name : it->name); }
int nvmlDeviceGetIndex(device_t on, unsigned *into) { WHOLE(on); *into = on->gpu; return OK; }
int nvmlDeviceGetMemoryInfo(device_t on, u64 *into) {
    DEVICE(on);
    u64 total = on->mig >= 0 ? mig[on->mig].memory : it->memory;
    if (!total) return NOT_SUPPORTED;
    into[0] = total; into[1] = total - it->used; into[2] = it->used;
    return OK;
}
int nvmlDeviceGetCudaComputeCapability(device_t on, int *major, int *minor) {
    DEVICE(on);
    *minor = it->minor;
    GIVE(major, it->major);
}
int nvmlDeviceGetNumGpuCores(device_t on, unsigned *into) { WHOLE(on); GIVE(into, it->cores); }
int nvmlDeviceGetMemoryBusWidth(device_t on, unsigned *into) { WHOLE(on); GIVE(into, it->bus); }
int nvmlDeviceGetMaxClockInfo(device_t on, int kind, unsigned *into) {
    WHOLE(on);
    if (kind != 2) return NOT_SUPPORTED;
    GIVE(into, it->clock);
}
int nvmlDeviceGetRemappedRows(device_t on, unsigned *corrected, unsigned *uncorrected, unsigned *pending, unsigned *failure) {
    WHOLE(on);
    *corrected = *uncorrected = 0;
    *pending = it->remap_pending;
    *failure = it->remap_failure;
    return OK;
}
int nvmlDeviceGetRetiredPagesPendingStatus(device_t on, unsigned *into) { WHOLE(on); *into = it->retired; return OK; }

struct field_value {
    unsigned id, scope;
    long long timestamp, latency;
    unsigned kind;
    int result;
    union { unsigned ui; u64 ull; } value;
};
enum { RECOVERY_ACTION = 230, UNSIGNED_INT = 1 };
/* Each field has an answer of its own; of the fields only the recovery action is here. */
int nvmlDeviceGetFieldValues(device_t on, int count, struct field_value *values) {
    WHOLE(on);
    for (int i = 0; i < count; i++) {
        values[i].result = values[i].id == RECOVERY_ACTION ? OK : NOT_SUPPORTED;
        values[i].kind = UNSIGNED_INT;
        values[i].value.ui = it->recovery;
    }
    return OK;
}

int nvmlDeviceGetMigMode(device_t on, unsigned *current, unsigned *pending) {
    WHOLE(on);
    *current = *pending = it->mig;
    return OK;
}
int nvmlDeviceGetMaxMigDeviceCount(device_t on, unsigned *into) { WHOLE(on); *into = it->mig ? 7 : 0; return OK; }
int nvmlDeviceGetMigDeviceHandleByIndex(device_t on, unsigned index, device_t *into) {
    WHOLE(on);
    for (int i = 0; i < migs; i++) if (mig[i].gpu == on->gpu && index-- == 0) { *into = &part[i]; return OK; }
    return NOT_FOUND;
}
int nvmlDeviceIsMigDeviceHandle(device_t on, unsigned *into) { ENTER(on->gpu); *into = on->mig >= 0; return OK; }
int nvmlDeviceGetDeviceHandleFromMigDeviceHandle(device_t on, device_t *into) { DEVICE(on); *into = &whole[on->gpu]; return OK; }
int nvmlDeviceGetGpuInstanceId(device_t on, unsigned *into) {
    DEVICE(on);
    if (on->mig < 0) return NOT_SUPPORTED;
    *into = mig[on->mig].gi;
    return OK;
}
int nvmlDeviceGetComputeInstanceId(device_t on, unsigned *into) {
    DEVICE(on);
    if (on->mig < 0) return NOT_SUPPORTED;
    *into = mig[on->mig].ci;
    return OK;
}
struct attributes { unsigned sms, copy, decoder, encoder, jpeg, ofa, gpu_slices, compute_slices; u64 memory_mb; };
int nvmlDeviceGetAttributes_v2(device_t on, struct attributes *into) {
    DEVICE(on);
    if (on->mig < 0) return NOT_SUPPORTED;
    struct mig *that = &mig[on->mig];
    *into = (struct attributes){that->sms, 1, 0, 0, 0, 0, that->slices, that->compute, that->memory >> 20};
    return OK;
}
int nvmlDeviceGetUtilizationRates(device_t on, unsigned *into) { WHOLE(on); into[0] = it->util; into[1] = 0; return OK; }
int nvmlDeviceGetNvLinkVersion(device_t on, unsigned link, unsigned *into) { (void)link; (void)into; WHOLE(on); return NOT_SUPPORTED; }
int nvmlDeviceGetMaxPcieLinkGeneration(device_t on, unsigned *into) { WHOLE(on); *into = 5; return OK; }
int nvmlDeviceGetMaxPcieLinkWidth(device_t on, unsigned *into) { WHOLE(on); *into = 16; return OK; }
int nvmlDeviceGetPcieThroughput(device_t on, int counter, unsigned *into) { (void)counter; WHOLE(on); *into = 0; return OK; }
static int known(u64 value, unsigned *into) { *into = value; return value ? OK : NOT_SUPPORTED; }
int nvmlDeviceGetTemperature(device_t on, int sensor, unsigned *into) { (void)sensor; WHOLE(on); return known(it->celsius, into); }
int nvmlDeviceGetPowerUsage(device_t on, unsigned *into) { WHOLE(on); return known(it->draw_mw, into); }
int nvmlDeviceGetEnforcedPowerLimit(device_t on, unsigned *into) { WHOLE(on); return known(it->limit_mw, into); }

struct process_info { unsigned pid; u64 memory; unsigned gi, ci; };
enum { COMPUTE, MPS, GRAPHICS };
static int give_processes(device_t on, int list, unsigned *count, struct process_info *into) {
    unsigned found = 0;
    for (int i = 0; i < processes; i++) {
        struct process *that = &process[i];
        int mine = that->gpu == on->gpu && that->draws == (list == GRAPHICS);
        if (list == MPS) mine = mine && that->mps;  /* MPS clients are in two lists */
        if (on->mig >= 0) mine = mine && that->gi == mig[on->mig].gi && that->ci == mig[on->mig].ci;
        if (!mine) continue;
        if (into && found < *count)
            into[found] = (struct process_info){that->pid, that->memory < 0 ? ~0ull : (u64)that->memory, that->gi, that->ci};
        found++;
    }
    int fits = found <= *count;
    *count = found;
    return fits ? OK : TOO_SMALL;
}
int nvmlDeviceGetComputeRunningProcesses_v3(device_t on, unsigned *count, struct process_info *into) {
    DEVICE(on);
    return give_processes(on, COMPUTE, count, into);
}
int nvmlDeviceGetMPSComputeRunningProcesses_v3(device_t on, unsigned *count, struct process_info *into) {
    DEVICE(on);
    return give_processes(on, MPS, count, into);
}
int nvmlDeviceGetGraphicsRunningProcesses_v3(device_t on, unsigned *count, struct process_info *into) {
    DEVICE(on);
    return give_processes(on, GRAPHICS, count, into);
}
struct sample { unsigned pid; u64 time_us; unsigned sm, mem, enc, dec; };
int nvmlDeviceGetProcessUtilization(device_t on, struct sample *into, unsigned *count, u64 since_us) {
    WHOLE(on);
    if (it->mig) return NOT_SUPPORTED;
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    u64 now_us = now.tv_sec * 1000000ull + now.tv_nsec / 1000;
    unsigned found = 0;
    for (int i = 0; i < uses; i++) {
        if (use[i].gpu != on->gpu || now_us <= since_us) continue;
        if (into && found < *count) into[found] = (struct sample){use[i].pid, now_us, use[i].sm, use[i].mem, 0, 0};
        found++;
    }
    if (!found) return NOT_FOUND;
    int fits = into && found <= *count;
    *count = found;
    return fits ? OK : TOO_SMALL;
}
int nvmlDeviceGetComputeMode(device_t on, int *into) { WHOLE(on); *into = modes[on->gpu]; return OK; }
int nvmlDeviceSetComputeMode(device_t on, int mode) {
    WHOLE(on);
    char path[4096];
    snprintf(path, sizeof path, "%s.log", getenv("GPUSPAWNER_TEST_NVML"));
    FILE *file = fopen(path, "a");
    if (file) { fprintf(file, "compute_mode %s %d\n", it->uuid, mode); fclose(file); }
    modes[on->gpu] = mode;
    mode_set[on->gpu] = 1;
    return OK;
}

struct event_set { u64 sent; int on[MOST]; };
struct event { device_t device; u64 type, data; unsigned gi, ci; };
int nvmlDeviceGetSupportedEventTypes(device_t on, u64 *into) { WHOLE(on); *into = it->events ? 8 : 0; return OK; }
int nvmlEventSetCreate(struct event_set **into) {
    ENTER(-1);
    *into = calloc(1, sizeof **into);
    for (int i = 0; i < xids; i++) if (xid[i].seq > (*into)->sent) (*into)->sent = xid[i].seq;
    return OK;
}
int nvmlDeviceRegisterEvents(device_t on, u64 types, struct event_set *set) {
    WHOLE(on);
    if (!it->events || types != 8) return NOT_SUPPORTED;
    set->on[on->gpu] = 1;
    return OK;
}
int nvmlEventSetWait_v2(struct event_set *set, struct event *into, unsigned timeout_ms) {
    struct timespec begin, now;
    clock_gettime(CLOCK_MONOTONIC, &begin);
    for (;;) {
        ENTER(-1);
        for (int i = 0; i < xids; i++) {
            struct xid *that = &xid[i];
            if (that->seq <= set->sent || (that->gpu >= 0 && !set->on[that->gpu])) continue;
            set->sent = that->seq;
            *into = (struct event){that->gpu >= 0 ? &whole[that->gpu] : NULL, 8, that->code, (unsigned)that->gi, ~0u};
            return OK;
        }
        clock_gettime(CLOCK_MONOTONIC, &now);
        if ((now.tv_sec - begin.tv_sec) * 1000 + (now.tv_nsec - begin.tv_nsec) / 1000000 >= (long)timeout_ms) return TIMEOUT;
        usleep(10000);
    }
}
int nvmlEventSetFree(struct event_set *set) { free(set); return OK; }
