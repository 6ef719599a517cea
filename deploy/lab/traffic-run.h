/*
 * The correspondent's end: its sessions, its commands, and the one loop that drives them.
 */

static void broken(struct link *link, const char *why)
{
    if (!link->alive)
        return;
    link->alive = false;
    close(link->fd);
    link->fd = -1;
    printf("{\"type\":\"broken\",\"t\":%.3f,\"session\":\"%s\",\"error\":\"%s\"}\n", ms(now_ns()), link->name, why);
}

static void ask(struct link *link, struct pending pending, const char *line)
{
    size_t length = strlen(line);

    if (!link->alive || link->pendings == MAX_PENDING)
        return;
    if (send(link->fd, line, length, MSG_DONTWAIT) != (ssize_t)length) {
        broken(link, strerror(errno));
        return;
    }
    link->pending[link->pendings++] = pending;
}

static void read_answers(struct run *run, struct link *link)
{
    char line[LINE_BYTES];
    unsigned long long a, b, c, refused;
    bool open = lines_fill(&link->lines, link->fd);
    const char *error = errno ? strerror(errno) : "closed by the guest";

    while (lines_next(&link->lines, line) && link->pendings > 0) {
        struct pending pending = link->pending[0];
        int64_t rtt = now_ns() - pending.asked;

        memmove(link->pending, link->pending + 1, --link->pendings * sizeof pending);
        if (pending.kind == WINDOW && sscanf(line, "window %llu %llu %llu %llu", &a, &b, &c, &refused) == 4) {
            print_window(run, &run->marks[pending.from], &run->marks[pending.to], (struct tally){a, b, c}, refused - run->refused);
            run->refused = refused;
        } else if (pending.kind != WINDOW && sscanf(line, "pong %llu %llu %llx", &a, &b, &c) == 3) {
            /* Both live in the memory of the guest's end: one that started anew cannot go on with them. */
            if (c != run->instance || b <= link->counter) {
                broken(link, "another guest answered: its counter does not go on");
                return;
            }
            link->counter = b;
            if (pending.kind == IDLE)
                printf("{\"type\":\"idle\",\"counter\":%llu,\"instance\":\"%016llx\",\"rttMs\":%.3f}\n", b, c, ms(rtt));
            run->last_rtt = rtt;
            if (rtt > run->most_rtt)
                run->most_rtt = rtt;
        } else {
            broken(link, "malformed answer");
            return;
        }
    }
    if (!open)
        broken(link, error);
}

static int find_mark(const struct run *run, const char *name)
{
    for (int i = run->mark_count - 1; i >= 0; i--)
        if (strcmp(run->marks[i].name, name) == 0)
            return i;
    return -1;
}

static void mark(struct run *run, const char *name)
{
    struct mark *mark = &run->marks[run->mark_count];

    if (run->mark_count == MAX_MARKS) {
        printf("{\"type\":\"error\",\"message\":\"too many marks\"}\n");
        return;
    }
    *mark = (struct mark){.at = now_ns(), .down_number = run->down_number, .up_number = run->up.highest,
                          .bulk_up = run->bulk_up, .bulk_down = run->bulk_down_seen};
    snprintf(mark->name, sizeof mark->name, "%s", name);
    run->mark_count++;
    printf("{\"type\":\"mark\",\"name\":\"%s\",\"t\":%.3f,\"down\":%llu,\"up\":%llu}\n", mark->name, ms(mark->at),
           (unsigned long long)mark->down_number, (unsigned long long)mark->up_number);
}

/* False: quit. */
static bool command(struct run *run, const char *line)
{
    char first[32], second[32], request[LINE_BYTES];

    if (sscanf(line, "mark %31[a-zA-Z0-9_.-]", first) == 1) {
        mark(run, first);
    } else if (sscanf(line, "window %31s %31s", first, second) == 2) {
        struct pending pending = {.kind = WINDOW, .asked = now_ns(), .from = find_mark(run, first), .to = find_mark(run, second)};
        if (pending.from < 0 || pending.to < 0 || pending.from >= pending.to) {
            printf("{\"type\":\"error\",\"message\":\"window needs two marks, the earlier one first\"}\n");
            return true;
        }
        snprintf(request, sizeof request, "window %llu %llu\n", (unsigned long long)run->marks[pending.from].down_number + 1,
                 (unsigned long long)run->marks[pending.to].down_number);
        ask(&run->links[REQUEST], pending, request);
    } else if (strcmp(line, "idle") == 0) {
        snprintf(request, sizeof request, "ping %llu\n", (unsigned long long)++run->ping_number);
        ask(&run->links[IDLE_SESSION], (struct pending){.kind = IDLE, .asked = now_ns()}, request);
    } else if (strcmp(line, "quit") == 0) {
        return false;
    } else {
        printf("{\"type\":\"error\",\"message\":\"unknown command\"}\n");
    }
    return true;
}

/* Waits until the guest answers a connection, up to the time limit; blocking, before the measuring starts. */
static int connect_guest(const struct run *run, uint16_t port, int64_t deadline)
{
    struct sockaddr_in to = run->to;

    to.sin_port = htons(port);
    for (;;) {
        int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        struct pollfd ready = {.fd = fd, .events = POLLOUT};
        int error = 0;
        socklen_t length = sizeof error;

        if (fd < 0)
            die("socket: %s", strerror(errno));
        set_option(fd, IPPROTO_TCP, TCP_NODELAY, 1);
        if (connect(fd, (struct sockaddr *)&to, sizeof to) < 0 && errno != EINPROGRESS)
            error = errno;
        /* One second: a SYN that went into the void before the guest was up is not waited for. */
        else if (poll(&ready, 1, 1000) != 1)
            error = ETIMEDOUT;
        else
            getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length);
        if (error == 0)
            return fd;
        close(fd);
        if (stopping || now_ns() > deadline)
            die("the guest does not answer on port %u: %s", port, strerror(error));
        usleep(100000);
    }
}

static void ask_blocking(int fd, const char *request, char answer[LINE_BYTES])
{
    struct lines lines = {.length = 0};
    struct pollfd ready = {.fd = fd, .events = POLLIN};

    if (send(fd, request, strlen(request), 0) < 0)
        die("the guest hung up: %s", strerror(errno));
    while (!lines_next(&lines, answer))
        if (poll(&ready, 1, 5000) != 1 || !lines_fill(&lines, fd))
            die("the guest does not answer a request");
}

static void open_links(struct run *run)
{
    static const char *const names[LINKS] = {"request", "idle", "bulkUp", "bulkDown"};
    const struct options *options = &run->options;
    int64_t deadline = now_ns() + options->wait_s * NS_PER_S;
    struct sockaddr_in any = {.sin_family = AF_INET};
    socklen_t length = sizeof any;
    char line[LINE_BYTES];
    unsigned long long number, counter, instance;

    run->to = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr = options->to};
    for (int i = 0; i < LINKS; i++) {
        run->links[i] = (struct link){.name = names[i], .fd = -1};
        if (i < BULK_UP || options->bulk_mbit > 0) {
            run->links[i].fd = connect_guest(run, i < BULK_UP ? options->port : options->bulk_port, deadline);
            run->links[i].alive = true;
        }
    }
    run->udp = udp_socket();
    set_option(run->udp, SOL_SOCKET, SO_TIMESTAMPNS, 1);
    if (bind(run->udp, (struct sockaddr *)&any, sizeof any) < 0 || getsockname(run->udp, (struct sockaddr *)&any, &length) < 0)
        die("cannot bind a UDP port: %s", strerror(errno));
    getrandom(&run->session, sizeof run->session, 0);
    ask_blocking(run->links[IDLE_SESSION].fd, "ping 0\n", line);
    if (sscanf(line, "pong %llu %llu %llx", &number, &counter, &instance) != 3)
        die("malformed answer");
    run->instance = instance;
    run->links[REQUEST].counter = run->links[IDLE_SESSION].counter = counter;
    snprintf(line, sizeof line, "start %u %u %u\n", run->session, options->pps_up, ntohs(any.sin_port));
    ask_blocking(run->links[REQUEST].fd, line, line);
    if (options->bulk_mbit > 0) {
        snprintf(line, sizeof line, "send %u\n", options->bulk_mbit);
        if (send(run->links[BULK_UP].fd, line, strlen(line), 0) < 0 || send(run->links[BULK_DOWN].fd, "sink\n", 5, 0) < 0)
            die("the guest hung up: %s", strerror(errno));
    }
    printf("{\"type\":\"ready\",\"t\":%.3f,\"counter\":%llu,\"instance\":\"%016llx\"}\n", ms(now_ns()), counter, instance);
}

static void receive_up(struct run *run)
{
    int64_t to_monotonic = now_ns() - clock_ns(CLOCK_REALTIME);
    struct up_packet packet;
    char control[CMSG_SPACE(sizeof(struct timespec))];

    for (;;) {
        struct iovec part = {.iov_base = &packet, .iov_len = sizeof packet};
        struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
        ssize_t got = recvmsg(run->udp, &message, 0);
        struct cmsghdr *stamp = got < 0 ? NULL : CMSG_FIRSTHDR(&message);
        int64_t at = now_ns();
        uint64_t number = be64toh(packet.number), bytes = be64toh(packet.bulk_bytes);

        if (got < 0)
            return;
        if (got != (ssize_t)sizeof packet || packet.magic != htobe32(UP_MAGIC) || packet.session != htobe32(run->session) || number > MAX_NUMBER)
            continue;
        /* The kernel's stamp: when it arrived, not when this process was scheduled. */
        if (stamp != NULL && stamp->cmsg_level == SOL_SOCKET && stamp->cmsg_type == SCM_TIMESTAMPNS) {
            struct timespec kernel;
            memcpy(&kernel, CMSG_DATA(stamp), sizeof kernel);
            at = kernel.tv_sec * NS_PER_S + kernel.tv_nsec + to_monotonic;
        }
        record_add(&run->up, number);
        if (number >= be64toh(run->guest.number))
            run->guest = packet;
        if (bytes > run->bulk_down_seen) {
            run->bucket_down[(at / (BUCKET_MS * NS_PER_MS)) % BUCKETS] += bytes - run->bulk_down_seen;
            run->bulk_down_seen = bytes;
        }
        add_event(&run->packets, (struct event){at, (uint32_t)number, (uint32_t)be64toh(packet.highest), bytes});
    }
}

static void receive_bulk(struct run *run, struct link *link)
{
    static char bytes[4 * BULK_CHUNK];
    ssize_t got = read(link->fd, bytes, sizeof bytes);
    int64_t at = now_ns();

    if (got > 0) {
        run->bulk_up += (uint64_t)got;
        run->bucket_up[(at / (BUCKET_MS * NS_PER_MS)) % BUCKETS] += (uint64_t)got;
        add_event(&run->bulk, (struct event){at, 0, 0, run->bulk_up});
    } else if (got == 0 || (errno != EAGAIN && errno != EINTR)) {
        broken(link, got == 0 ? "closed by the guest" : strerror(errno));
    }
}

static void send_all(struct run *run, int64_t now)
{
    struct link *bulk = &run->links[BULK_DOWN];
    uint64_t due = run->options.pps_down > 0 ? pacer_due(&run->down, now) : 0;
    int64_t late = run->options.pps_down > 0 ? (int64_t)(due * (uint64_t)NS_PER_S / run->options.pps_down) : 0;

    if (late > run->most_late)
        run->most_late = late;
    for (; due > 0 && run->down_number < MAX_NUMBER; due--) {
        struct down_packet packet = {htobe32(DOWN_MAGIC), htobe32(run->session), htobe64(run->down_number + 1), htobe64((uint64_t)now)};
        if (sendto(run->udp, &packet, sizeof packet, 0, (struct sockaddr *)&run->to, sizeof run->to) < 0)
            break;
        run->down_number++;
        run->down.done++;
    }
    due = bulk->alive ? pacer_due(&run->bulk_down, now) : 0;
    if (due > 0) {
        ssize_t sent = send(bulk->fd, bulk_bytes, due < BULK_CHUNK ? due : BULK_CHUNK, 0);
        if (sent > 0)
            run->bulk_down.done += (double)sent;
        else if (sent < 0 && errno != EAGAIN && errno != EINTR)
            broken(bulk, strerror(errno));
    }
    if (run->options.rr_ms > 0 && now >= run->next_ping && run->links[REQUEST].pendings == 0) {
        char line[LINE_BYTES];
        run->next_ping = now + run->options.rr_ms * NS_PER_MS;
        snprintf(line, sizeof line, "ping %llu\n", (unsigned long long)++run->ping_number);
        ask(&run->links[REQUEST], (struct pending){.kind = PING, .asked = now}, line);
    }
}

static void run_correspondent(struct options options)
{
    static struct run run;
    struct lines commands = {.length = 0};
    char line[LINE_BYTES];
    int64_t tick = options.pps_down > 1000 ? NS_PER_S / options.pps_down : NS_PER_MS;
    bool going = true;

    handle_stop_signals();
    run.options = options;
    run.packets.ring = calloc(MAX_EVENTS, sizeof *run.packets.ring);
    run.bulk.ring = calloc(MAX_EVENTS, sizeof *run.bulk.ring);
    if (run.packets.ring == NULL || run.bulk.ring == NULL)
        die("out of memory");
    record_open(&run.up);
    open_links(&run);
    /* Best effort: the measuring end should not wait behind what it measures. */
    setpriority(PRIO_PROCESS, 0, -10);
    fcntl(STDIN_FILENO, F_SETFL, fcntl(STDIN_FILENO, F_GETFL) | O_NONBLOCK);
    run.to.sin_port = htons(options.port);
    run.tick = tick_timer();
    set_tick(run.tick, tick < NS_PER_MS / 10 ? NS_PER_MS / 10 : tick);
    pacer_start(&run.down, options.pps_down);
    pacer_start(&run.bulk_down, options.bulk_mbit * 1e6 / 8);
    run.next_sample = (now_ns() / (SAMPLE_MS * NS_PER_MS) + 1) * SAMPLE_MS * NS_PER_MS;

    while (going && !stopping) {
        struct pollfd fds[3 + LINKS] = {{.fd = run.udp, .events = POLLIN}, {.fd = run.tick, .events = POLLIN}, {.fd = STDIN_FILENO, .events = POLLIN}};
        int64_t now;

        for (int i = 0; i < LINKS; i++)
            fds[3 + i] = (struct pollfd){.fd = run.links[i].fd, .events = POLLIN};
        if (poll(fds, 3 + LINKS, -1) < 0)
            continue;
        receive_up(&run);
        if (fds[1].revents) {
            clear_tick(run.tick);
            now = now_ns();
            if (now >= run.next_sample)
                print_sample(&run, now);
            send_all(&run, now);
        }
        for (int i = 0; i < LINKS; i++) {
            if (!fds[3 + i].revents || !run.links[i].alive)
                continue;
            if (i < BULK_UP)
                read_answers(&run, &run.links[i]);
            else
                receive_bulk(&run, &run.links[i]);
        }
        if (fds[2].revents) {
            going = lines_fill(&commands, STDIN_FILENO);
            while (lines_next(&commands, line))
                going &= command(&run, line);
        }
        if (ferror(stdout))
            die("nobody reads the results");
    }
    print_end(&run);
}
