//! What to do about findings.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::message::Phrase;
use crate::{
    id::JobId,
    text::{List, lists, texts},
};

/// What to do about a finding, by who can do it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Fix {
    /// Ferry can do it when it is asked to.
    Action(Action),
    /// Commands on a host.
    Command(Command),
    /// A person has to do or to decide something.
    ByHand(ByHand),
}

impl Fix {
    /// Whether it is of a later version.
    pub(super) fn is_unknown(&self) -> bool {
        match self {
            Self::Action(fix) => fix.is_unknown(),
            Self::Command(fix) => fix.is_unknown(),
            Self::ByHand(fix) => fix.is_unknown(),
        }
    }
}

impl fmt::Display for Fix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Action(fix) => fix.fmt(f),
            Self::Command(fix) => fix.fmt(f),
            Self::ByHand(fix) => fix.fmt(f),
        }
    }
}

lists! {
    /// Several things to do.
    Fixes(Fix) = "{}", "; and ";
}

texts! {
    /// What Ferry can do when it is asked to. The command line's words for it stand between backquotes.
    pub enum Action {
        ListVms = "List the VMs with `ferry vm list`; a host that does not answer shows the VMs it had last",
        ListHostsForVm = "Choose another host; `ferry vm hosts` lists them",
        WaitOrCancel { job: JobId } = "Wait for it (`ferry job watch {job}`) or cancel it (`ferry job cancel {job}`)",
        WaitForMove = "Wait for that move to end; `ferry job list` shows it",
        StartVm { vm: String } = "Start it first: `ferry vm start {vm}`; or move it as it is with `--offline`",
        StartVmOrOffline { vm: String } = "Start it with `ferry vm start {vm}`, or move its files to another host with `--offline`",
        FreeMemory = "Free memory there, or choose another host with `ferry vm hosts`; `--overcommit` moves it anyway",
        KeepBalloon = "Do not give it more memory there, or choose another host with `ferry vm hosts`",
        EndMaintenance { host: String } = "Choose another host, or end the maintenance: `ferry host resume {host}`",
        SetNetworksOfHost { host: String } = "Give it a network in which it has an address, `ferry host set {host} --migration-network SUBNET`, or connect it to one of those; or let its moves travel where agents are set to listen: `ferry host set {host} --no-migration-network`",
        SetMigrationNetworks { source: String, destination: String } = "Give both hosts a network in which each has an address (`ferry host show {source}` and `ferry host show {destination}` list them): `ferry host set HOST --migration-network SUBNET`; or let their moves travel where their agents are set to listen: `ferry host set HOST --no-migration-network`",
        AddShare { share: String } = "Add it with `ferry share add NAME '{share}'`, then attach it with `ferry share attach NAME --host HOST`",
        AttachShare { share: String, host: String } = "Attach the share: `ferry share attach {share} --host {host}`",
        AttachShareWith { share: String, host: String } = "Attach it with `ferry share attach {share} --host {host}`",
        MoveOffline { vm: String } = "Shut down every VM that uses it and move them to another host one after the other, each with the disk to the same place, `ferry vm migrate {vm} --to HOST --storage PLACE --offline`; start none before all have moved",
        MoveOfflineOrShare { vm: String, host: String } = "Shut down every VM that uses it and move them one after the other, each with the disk to the same place, `ferry vm migrate {vm} --to {host} --storage PLACE --offline`; start none before all have moved. Or put the file on a share that both hosts reach",
        #[serde(rename = "move-nvram-along")]
        MigrateNvram { host: String } = "Move them with the VM: `--storage PLACE`, a folder of {host} (`ferry host browse {host}`) or of a share",
        #[serde(rename = "move-disk-along")]
        MigrateDisk { host: String } = "Move it with the VM: `--storage PLACE`, a folder of {host} (`ferry host browse {host}`) or of a share",
        #[serde(rename = "move-chain-along")]
        MigrateChain { device: String, host: String } = "Move the disk with the VM as one image, while the VM runs: `--disk {device}=PLACE`, a folder of {host} (`ferry host browse {host}`) or of a share",
        PutOnShare { source: String, destination: String } = "Put the file on a share that {source} and {destination} both reach (`ferry share list`)",
        ShutDownOther { vm: String } = "Shut it down (`ferry vm shutdown {vm}`), and start none of the VMs that use the disk before all of them have moved",
        MoveOther { vm: String, other: String, host: String } = "When VM {vm} has moved, move VM {other} with the disk to the same place, `ferry vm migrate {other} --to {host} --storage PLACE --offline`: it uses the file that is there, and the old file is removed. Start neither VM before that",
        GivePlace { option: String, device: String } = "Give `{option} PLACE`, or `--disk {device}=PLACE`",
        GiveOtherFile { device: String, format: String } = "Give it another file: `--disk {device}=PLACE,format={format}`",
        ChangeFormatLater { vm: String } = "Leave the format out; change it later with `ferry vm move-storage {vm}` while the VM runs",
        ChooseQcow2 { device: String } = "Choose qcow2: `--disk {device}=PLACE,format=qcow2`",
        MoveOfflineOrLeaveOut = "Move it while the VM is shut off: `ferry vm migrate --offline`, or by hand; or leave it out with `--disk` for the others",
        MoveLive = "Start the VM and move it live, which copies the whole chain; or flatten the disk with `qemu-img rebase`",
        MoveOfflineOrKvm { since: String } = "Shut the VM down and move it with `--offline`; or run it by KVM, or by QEMU {since} or later",
        AddHost = "Add the host with `ferry host add`",
        AddHostAnew = "Add the host to this server with a new token (`ferry-agent token` on the host, then `ferry host add`)",
        ListAllVms = "List the VMs with `ferry vm list`",
        ShowVm = "Look at the VM with `ferry vm show` and ask again",
        ShowHost = "`ferry host show` lists what the host reaches",
        ShowJob = "Look at the job with `ferry job show`; restart it if it has failed",
        ShowDamagedJob { job: String } = "Check job {job} (`ferry job show {job}`) and where its VM is (`ferry vm list`); then remove the file",
        RemoveWhenNoJob = "Remove the file when no job of this host is open (`ferry job list`)",
        MoveAgainAnyhow = "Ask for the move again: the next job has another number",
        MoveAgain { vm: String } = "Ask for the move again: the next job has another number. See where VM {vm} is with `ferry vm list`",
        AttachShareOnHost = "Attach it with `ferry share attach`",
        AttachSharesAgain = "Attach them again with `ferry share attach`, then remove the file",
        GiveLogin = "Give them with `--user` and `--password-file`, or adopt a mount of your own with `--at PATH`",
        AttachWithoutUser = "Attach it without `--user`",
        FreeMemoryOrFewer = "Free memory there, or move fewer VMs; `--overcommit` moves them anyway",
        FreeMemoryElsewhere { host: String } = "Free memory on another host, then `ferry host drain {host}` again; `ferry host drain {host} --overcommit` moves it anyway",
        WaitOrCancelThenDrain { job: JobId, host: String } = "Wait for it (`ferry job watch {job}`) or cancel it (`ferry job cancel {job}`), then `ferry host drain {host}` again",
        ThenDrain { first: Box<Fix>, host: String } = "{first}; then `ferry host drain {host}` again",
        AddAnotherHost = "Add another host with `ferry host add`",
        ListHosts = "List the hosts with `ferry host list`; add one with `ferry host add`",
        RemoveAndAdd { host: String } = "If the agent was set up again, remove the host and add it again: `ferry host remove {host}`",
        TakeHostOver { host: String } = "If this server is to manage it, remove the host and add it again: `ferry host remove {host}`",
        MoveOrUndefine { vm: String } = "Move or undefine VM {vm} first",
        WaitForJobToEnd { job: JobId } = "Wait for it: `ferry job watch {job}`",
        RemoveStorage { host: String } = "Remove one with `ferry host storage remove {host}`",
        RemoveStorageFirst { host: String, path: String } = "Remove it first: `ferry host storage remove {host} '{path}'`",
        ListStorage { host: String } = "List them with `ferry host storage list {host}`",
        DetachShareFirst { share: String, host: String } = "Detach it first: `ferry share detach {share} --host {host}`",
        ListShares = "List the shares with `ferry share list`; add one with `ferry share add`",
        ListJobs = "List the jobs with `ferry job list`",
        ShowJobNumber { job: JobId } = "See it with `ferry job show {job}`",
        ShowParts { job: JobId } = "See them with `ferry job show {job}` and name one of them",
        RestartJob { job: JobId } = "Start another attempt with `ferry job restart {job}`",
        MoveDisksBack { vm: String } = "Wait for the job to end, then move them back: `ferry vm move-storage {vm} --to PLACE`",
        MoveBack { vm: String, host: String } = "Wait for the job to end, then move the VM back: `ferry vm migrate {vm} --to {host}`",
        NewMove = "Start a new move with `ferry vm migrate`",
        NewOfflineMove { vm: String, host: String } = "Start a new move: `ferry vm migrate {vm} --to {host} --offline`",
        SeeWhere = "See where it is with `ferry vm list`",
        NameDisks = "Name disks with `--disk`, or a place for all with `--to`",
        TryEach = "Try each by itself: `ferry vm migrate NAME --to HOST --dry-run`",
        MoveEachOffline = "Move each by itself: `ferry vm migrate NAME --to HOST --offline`",
        MoveAlone = "Move it by itself: `ferry vm migrate NAME --to HOST --disk DISK=PLACE`",
        UseToken = "Use the token in the file admin.token of the server's state directory: `ferry login`",
        RunOffline = "Leave `--offline` out to move it while it runs, or shut it down first",
    }
}

texts! {
    /// Commands on a host, between backquotes.
    pub enum Command {
        StartAgent { host: String } = "Check that the host is up and `ferry-agent run` is running on it; see `ferry host show {host}`",
        DeleteSnapshots { vm: String } = "Delete them: `virsh snapshot-list {vm}`, then `virsh snapshot-delete {vm} SNAPSHOT`",
        DeleteCheckpoints { vm: String } = "Delete them: `virsh checkpoint-list {vm}`, then `virsh checkpoint-delete {vm} CHECKPOINT --metadata`; the next backup is a full one",
        MoveTpm { vm: String, uuid: String } = "Move it by hand while it is shut off: copy its files and /var/lib/libvirt/swtpm/{uuid} to the other host with `rsync -aS`, define the output of `virsh dumpxml {vm} --inactive` there, then `virsh undefine {vm} --keep-nvram --keep-tpm` here",
        DestroyAndStart { vm: String, on: Phrase } = "Save what is left of it, if you need it (`virsh dump {vm} FILE`{on}); then `virsh destroy {vm}`{on}, and start it again with `ferry vm start {vm}`",
        Wake { vm: String, on: Phrase } = "Wake it first: `virsh dompmwakeup {vm}`{on}",
        Resume { vm: String, on: Phrase } = "Find out why (`virsh domstate --reason {vm}`{on}), then `virsh resume {vm}`",
        MakeRoomAndResume { vm: String, on: Phrase } = "Make room for its disks. On a share that reports its free space the VM then runs again by itself; otherwise `virsh resume {vm}`{on}",
        MendStorageAndResume { vm: String, on: Phrase } = "Check that its storage answers. On a share the VM then runs again by itself; otherwise `virsh resume {vm}`{on}",
        SetHugePages = "Reserve more of them there (`vm.nr_hugepages`), or choose another host with `ferry vm hosts`",
        RemoveLeftover { host: String, vm: String } = "If it is a leftover, remove it on {host}: `virsh undefine {vm}`; otherwise give one of them another UUID",
        RenameVm { vm: String, host: String } = "Rename one of them: `virsh domrename {vm} NEW-NAME` on {host}",
        ChooseQemu { vm: String, needed: String } = "Choose a host with QEMU {needed} or later; or, while the VM is shut off, set an earlier machine type (`virsh edit {vm}`): guests may see other devices then",
        DestroyCopies = "Decide which copy is the right one and destroy the others with `virsh destroy` at once; then check its disks",
        EjectOrShare { vm: String, device: String, host: String } = "Eject it (`virsh change-media {vm} {device} --eject` on {host}) or put it on a share",
        EjectOn { vm: String, device: String, host: String } = "Eject it: `virsh change-media {vm} {device} --eject` on {host}",
        EjectKept { vm: String, device: String } = "Eject it with `virsh change-media {vm} {device} --eject --config`",
        NothingOrEject { vm: String, device: String } = "Nothing; or eject it with `virsh change-media {vm} {device} --eject`",
        StartPool { host: String } = "Start its pool (`virsh pool-list --all` and `virsh pool-start` on {host}), then ask again",
        DetachFolder { vm: String, host: String } = "Unmount it in the guest and detach it: `virsh detach-device {vm} FILE` on {host}",
        DefineSecret { host: String } = "Define it there with the same UUID: `virsh secret-define` and `virsh secret-set-value` on {host}",
        MountHard { host: String } = "Mount it again with `-o hard` on {host}, or let Ferry mount it",
        MountNobrl { host: String } = "Stop the VMs that use it on {host}, unmount it there, and mount it again with `-o nobrl` and its other options; `-o remount,nobrl` has no effect on files that are open",
        LookAtMounts { source: String, destination: String } = "Check the mount options of the share on {source} and {destination} (for SMB: `nobrl`), then attach it again",
        MoveNvramByHand { vm: String, old: String, new: String } = "Nothing; or move them for its next start: `virsh shutdown {vm}`, then `mv {old} {new}`, then write the new path into <nvram> with `virsh edit {vm}`, then `ferry vm start {vm}`",
        EndCopy { vm: String, device: String } = "Wait until that has ended, or end it with `virsh blockjob {vm} {device} --abort`",
        SetUpAgent = "Run `ferry-agent setup` on the host and restart libvirtd",
        SetUpConfinement = "Run `ferry-agent setup` on the host; running VMs keep running",
        SetUpHost = "Run `ferry-agent setup` on the host; it says what is missing",
        PrintToken = "Print a new one on the host with `ferry-agent token`",
        WriteInConf { line: String, conf: String } = "Write `{line}` into {conf} on the host, restart libvirtd (or virtqemud), then attach the share again",
        ExportForRoot { server: String, export: String } = "Export it read-write, and with root as root: on {server}, write `{export} HOST(rw,sync,no_subtree_check,no_root_squash)` into /etc/exports, with the name or network of this host for HOST, run `exportfs -ra`, and attach the share again; QEMU's user must be able to pass the exported directory (mode 0711 or more)",
        RemoveSnapshotsOfImage { vm: String, file: String } = "Remove them: those that `virsh snapshot-list {vm}` shows with `virsh snapshot-delete`, others while the VM is shut off with `qemu-img snapshot -l {file}` and `qemu-img snapshot -d NAME {file}`",
        SeeToDefinition { vm: String } = "Check the file {vm}.xml there; `virsh dumpxml --inactive {vm}` prints the definition",
        FindWriter { file: String } = "Check what writes to it with `fuser -v {file}`; remove it when neither the VM nor anything else needs what was written",
        NameNewFileWithEdit = "Name the new file with `virsh edit`, then remove the old one",
        Undefine = "Remove its definition there with `virsh undefine`, if it is a leftover",
        StartNewest { vm: String } = "Start it where its disks are newest; at the other host remove it with `virsh undefine {vm}`",
        MendOrDestroy { vm: String } = "Repair what the message names: Ferry tries until the VM runs. Or give up the memory of the VM with `virsh destroy {vm}` on the destination: it is then shut off there, with its disks",
        SetHugePagesOrFewer = "Reserve more of them there (`vm.nr_hugepages`), or move fewer VMs",
        SetHugePagesElsewhere { host: String } = "Reserve more huge pages on another host (`vm.nr_hugepages`), then `ferry host drain {host}` again",
        CheckNetwork { source: String, here: String, there: String } = "Check that `ping -I {here} {there}` is answered on {source}, and that firewalls let the ports of moves through there (`data_ports`); another network is never used instead: `ferry host set` changes which",
        PrintWholeToken = "Print the token on the host with `ferry-agent token` and give the whole line",
        PrintTokenAt { address: String } = "Print the token with `ferry-agent token` on the host whose address is {address}",
        CheckAddress = "Check the address and port, that `ferry-agent run` is running there, and that the firewall lets this server through",
        PullBlocks = "Leave it where it is; or make the other VM's disk an image of its own with `virsh blockpull`",
        JoinDataFile = "Make one image of both with `qemu-img convert`, and name that in the definition",
        JoinDataFileOrLeaveOut = "Make one image of both with `qemu-img convert` while the VM is shut off; or leave it out with `--disk` for the others",
    }
}

texts! {
    /// What a person has to do or to decide.
    pub enum ByHand {
        #[serde(rename = "told")]
        Text { text: String } = "{text}",
        SayWhich { example: String } = "Say which one, as in `{example}`",
        DetachDevice = "Detach the device from the VM before the move",
        DetachDisk = "Detach it before the move, and attach what the destination has instead",
        DetachMemory = "Detach it before the move, or move the VM by hand while it is shut off",
        MoveDiskToShare = "Move the disk to a file on a share that both hosts reach",
        SameVersion = "Bring server and agents to the same version",
        SetCacheNone { vm: String, host: String, since: String } = "Set cache='none' in the disk's <driver>, then shut VM {vm} down and start it again; or upgrade libvirt on {host} to {since} or later",
        PutOnSmbOrNfs { host: String, since: String } = "Put the file on an SMB share or on NFS, let it move along with `--storage PLACE`, or upgrade libvirt on {host} to {since} or later",
        WritePlace = "Write /DIRECTORY, nfs://server.domain/export/directory, or '\\\\server.domain\\share\\directory' in single quotes",
        WritePathMeant = "Write the path that is meant, without \"..\"",
        UseShortNames = "Use names of at most 255 bytes without control characters, 4095 bytes together",
        WriteShare = "Write '\\\\server.domain\\share' in single quotes, nfs://server.domain/export, or --path /DIRECTORY",
        WriteUnc = "Write it as \\\\server.domain\\share",
        WriteNfs = "Write it as nfs://server.domain/export",
        WriteFullName = "Give the server's full name with its domain, as in DNS",
        WriteSharedPath = "Write the absolute path that all hosts share, as in /mnt/vms",
        SeeThatShareWorks { host: String } = "Check that the share works on {host}; if its mount was changed, attach it again",
        ShutDownUsers { host: String } = "Shut down the VMs on {host} that use it: when no VM uses it any more, Ferry mounts it again there, with `nobrl`",
        SeeThatShareIsWritable = "Check that both hosts can write to the share, then try again",
        CheckWhatIsMounted = "Check what the server's name resolves to on both hosts, and what is mounted at an adopted path",
        SetErrorPolicy = "Set error_policy='stop' in the disk's <driver>, so that the VM waits instead",
        SetErrorPolicyInDefinition = "Set error_policy='stop' in the disk's definition",
        SetUnmap = "Set discard='unmap' detect_zeroes='unmap' for the disk while the VM is shut off",
        NameNewFiles = "Name the new files in that definition, then remove the old ones",
        NameOneOf { devices: List } = "Name one of: {devices}",
        LeaveFormatOut = "Leave the format out",
        NameItOrFolder { format: String } = "Name it .{format}, or give a folder",
        NameFileForEach = "Name a file for each, or a folder for all",
        OwnFiles = "Give each VM files of its own",
        OwnFilesForDisks = "Give each disk a file of its own",
        TpmIsFound = "Nothing: the VM finds it there at its next start",
        ReadAtStart = "Nothing: it is read at a start only",
        NothingOrLeaveOut = "Nothing; or leave it out with `--disk` for the others",
        NothingOrCopyFile = "Nothing; or copy the file and change the definition while the VM is shut off",
        NothingOrLeaveOutFile = "Nothing; or leave it out: Ferry moves files of disks",
        ShutDownOrLeaveOut = "Shut the VM down first; or leave the disk out with `--disk` for the others",
        CopyPart = "Copy that part into an image of its own while the VM is shut off; or leave it out with `--disk` for the others",
        AllOf { fixes: Fixes } = "{fixes}",
        ToGoTo { host: String, fixes: Fixes } = "So that it can go to {host}: {fixes}",
        UpgradeEither { host: String } = "Upgrade ferry-agent on {host}, or the server if it is the older",
        UpgradeMeanwhile { host: String } = "Upgrade ferry-agent on {host}; moves there continue meanwhile",
        UpgradeAgent { host: String } = "Bring the agent on host {host} to the version of the server",
        UseHostOrRename = "If it is the same host, use it as it is; if it is a clone, give it its own name, machine id and host UUID",
        GiveAddress = "Give the agent's ADDRESS:PORT, as in 10.0.0.1:7421",
        UseShareOrRename = "Use the share that is there, or choose another name",
        NothingIsLeft = "Nothing is left to do for it; a new move can be started",
        NothingToDo = "Nothing needs to be done",
        StartNewMove = "Start a new move",
        NameAnotherHost = "Name another host, or none",
        NameVms { most: u64 } = "Name 1 to {most} VMs",
        NameVmOnce = "Name each VM once",
        NameForm { most: u64 } = "Use up to {most} letters, digits, '-', '_' and '.', beginning with a letter or digit",
        GiveLimit { most: u32 } = "Give 1 to {most}; to place nothing there, drain the host",
        GiveDowntime = "Give 10 to 10000 milliseconds",
        GiveBandwidth { least: u64 } = "Give at least {least} bytes per second",
        GiveTimeout = "Give one second to seven days",
        SeeWhatThereIs = "See /api/v1/openapi.json for what there is",
        SeeWhatIsPossible = "See /api/v1/openapi.json for what is possible",
        SeeForm = "See /api/v1/openapi.json for the form of the request",
        SendLess = "Send less than 64 KiB",
        SendJson = "Send Content-Type: application/json",
        UseNewUuid = "Use a new UUID per request",
        UseNewKey = "Use a new key for a new request",
        AskLater = "Ask again later",
        RemoveIfUnneeded = "Remove it if nothing needs it, or choose another place",
        RemoveOldCopies = "Remove the file, and what is named *.ferry-seed and older than a day where disks lie",
        MakeRoom = "Make room there, or choose another place or fewer disks",
        WaitOrMakeRoom = "Wait until the other jobs there have ended, make room, or choose another place",
        WaitForJob = "Wait until that job has ended, or choose another place",
        DecideWhichCounts = "Shut down every VM that uses either file, decide which of the two is right, copy it over the other, and ask again",
        LookWhereVmIs = "Check where the VM is and which files it uses",
        LookWhichFile = "Check where the VM is and which file it uses, or used when it ended; remove the other",
        NameNewFile = "Name the new file in that definition, then remove the old one",
        LetItFinish = "Let it finish, then move the VM back",
        WaitThenMoveBack = "Wait until the job has ended; then move them back if you like",
        AskBothHosts = "Ask both hosts again who has the VM",
        AskAgain = "Ask again; which host has the VM is known when libvirt's call ends",
        TryAgain = "Try again",
        TryAgainSoon = "Try again in a few seconds",
        ServerAsksAnew = "Nothing: the server was restarted and asks again",
        OlderServerAsked = "Nothing: the server sent this before it was restarted",
        NextVersion = "Use a server of the same version as the agent, or of the one before",
        SameServer = "Use a server of the same version as the agent",
        FaultOfServer = "This is a fault of the server program",
        AgentBack = "Install the agent's version that began the move until the move has ended",
        UpgradeServerOrLibvirt { since: String } = "Upgrade the server, or libvirt on this host to {since} or later",
        ChooseDirectory { roots: Phrase } = "Choose a directory in a share (by the share's own path) or in {roots}; other directories become storage roots by storage_roots in the configuration of the host's agent",
        ChooseLinked = "Choose the directory that the link leads to, if it lies in a storage root, or make the link relative",
        WriteInstead { path: String } = "Write {path}",
        MakeDirectory = "Make the directory on the host, or choose another",
        ChooseParent = "Choose the directory that holds it",
        CheckDirectory = "Check the directory, its file system and links on the host",
        LetQemuIn = "Allow QEMU's user to use the directory, check that its file system is writable, or choose another",
        LetRootGive = "Allow root of this host to make files there and give them to QEMU's user, and allow QEMU's user to pass the directory (mode 0711 or more); then attach the share again",
        CheckServer { server: String, port: u16 } = "Check that {server} resolves on this host and answers on TCP port {port}",
        CheckMountedThere = "Check the file system that is mounted there on this host",
        VmsWait { fix: Box<Fix> } = "{fix}. VMs on it wait until then, and continue by themselves",
        TakePasswordAgain = "Make the file server accept the password of the mount again: VMs that wait for it continue by themselves. Then move or stop the VMs of this host, detach the share, and attach it with the new password",
        CheckShareName = "Check the share's name; the file server's administrator knows its shares",
        GiveRightPassword = "Give the right user and password",
        EnableSmb3 = "Enable SMB 3 on the file server; older dialects lose locks and writes on a reconnect",
        MendMount = "Repair what the message names, then attach the share again",
        MountByFullName { share: String, at: String } = "Mount {share} at {at} by its full name first, or let Ferry mount it",
        MountSharedFileSystem { at: String } = "Mount the shared file system on this host and name its directory; attach the share again if what is mounted at {at} was changed on purpose",
        FreeShare = "Move or stop the VMs that use it, and close other files that are open there",
        AttachElsewhere = "Attach the share at another path, or use the one that is there",
        MountBelow { share: String, root: String } = "Mount {share} below {root} instead",
        LookAtShareMount = "Check the mount options of the share (for SMB: `nobrl`), then attach it again",
        RemoveWhenUnused = "Remove it when no VM and no definition uses it any more",
        RemoveLink = "Remove the link and the file that it leads to, when nothing needs them",
        RemoveUnlessDevice = "Nothing, if it is a device; else remove it when nothing needs it",
    }
}

impl From<Action> for Fix {
    fn from(fix: Action) -> Self {
        Self::Action(fix)
    }
}

impl From<Command> for Fix {
    fn from(fix: Command) -> Self {
        Self::Command(fix)
    }
}

impl From<ByHand> for Fix {
    fn from(fix: ByHand) -> Self {
        Self::ByHand(fix)
    }
}
