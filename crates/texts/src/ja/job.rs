//! What is told of jobs, in Japanese. How a job stands is told in whole sentences, with their full stops.

use ferry_core::job_text::JobText;

use super::catalogue;

catalogue! { JobText:
    // Parts
    Reason { text } = "{text}",
    LogSaysWhy = "理由はログを参照してください",
    MoveWaits = "移行は順番を待っています",
    ItsMoveWaits = "移行は順番を待っています",
    WaitsInQueue { position, slots } = "移行は待ち行列の {position} 番目で、{slots}を待っています",
    ALiveSlot { host, jobs } = "{host} のライブスロット（{jobs}が使用中）",
    AStorageSlot { host, jobs } = "{host} のストレージスロット（{jobs}が使用中）",
    CopiesRemoved { host } = "{host} へコピーしたものは削除されるか、次の試行のために 1 日間保持されます",
    NothingLeft { host } = "{host} には何も残っていません",
    KeepsTrying { job } = "Ferry は試行を続けます。`ferry job retry {job}` ですぐに再試行し、`ferry job dismiss {job}` で打ち切ります",
    CopiesKept { host, job } = "{host} へコピーしたものは削除されるか、1 日間保持されます。保持されている間は `ferry job restart {job}` で残りだけを送信します",

    // A live move
    LiveQueued { vm, source, wait } = "VM {vm} はそれまで {source} にあります。{wait}。",
    LivePreparing { vm, source, destination } = "VM {vm} は {source} にあり、{destination} への移行を準備しています。",
    LiveUnknown { vm, source, destination } = "VM {vm} は {source} から {destination} へ移行中です。どちらに VM があるかはまだ分かりません。",
    LiveDisks { vm, source, destination } = "VM {vm} は {source} で動作しており、ディスクを {destination} へコピーしています。コピーが終わるとメモリを移行します。",
    LiveMemory { vm, source, destination } = "VM {vm} は {source} で動作しており、メモリを {destination} へ移行しています。",
    LiveFinishing { vm, destination } = "VM {vm} は {destination} へ移行しました。移行の完了処理をしています。",
    LiveResuming { vm, destination } = "VM {vm} は {destination} にあり、そこで再開しています。",
    LiveTakenBack { vm, source } = "VM {vm} は {source} に残ります。準備したものを取り消しています。",
    LiveDone { vm, destination } = "VM {vm} は {destination} へ移行しました。",
    LiveCancelled { vm, source, left, job } = "VM {vm} は {source} に残っています: 移行はキャンセルされました。{left}。あらためて移行するには `ferry job restart {job}` を実行してください。",
    LiveFailed { vm, source, why, left, job } = "VM {vm} は {source} に残っています: {why}。{left}。原因を解消してから `ferry job restart {job}` で再実行してください。",
    LiveNotTakenBack { vm, source, why, tries } = "VM {vm} は {source} に残っていますが、準備したものをまだ取り消せていません: {why}。両方のホストとエージェントが動作していることを確認してください。{tries}。",
    LiveNotFinished { vm, source, destination, why, tries } = "VM {vm} は {destination} へ移行しましたが、移行をまだ完了できていません: {why}。{source} で VM を起動しないでください。{tries}。",
    LiveNotResumed { vm, source, destination, why, tries } = "VM {vm} は {destination} にありますが、まだ再開できていません: {why}。{source} で VM を起動しないでください。{tries}。",

    // A move of a VM that is shut off
    OfflineQueued { vm, source, wait } = "VM {vm} は {source} で停止しています。{wait}。",
    OfflinePreparing { vm, source, destination } = "VM {vm} は {source} で停止しており、{destination} への移行を準備しています。",
    OfflineCopying { vm, source, destination } = "VM {vm} は {source} で停止し、起動できないように保持されています。ファイルを {destination} へコピーしています。",
    OfflineFinishing { vm, source, destination } = "VM {vm} は {destination} で停止しています。{source} に残ったものを削除しています。",
    OfflineTakenBack { vm, source } = "VM {vm} は停止したまま {source} に残ります。準備したものを取り消しています。",
    OfflineDone { vm, destination } = "VM {vm} はファイルとともに {destination} にあり、停止しています。`ferry vm start {vm}` で起動できます。",
    OfflineCancelled { vm, source, kept } = "VM {vm} は停止したまま {source} に残っています: 移行はキャンセルされました。{kept}。",
    OfflineFailed { vm, source, why, kept } = "VM {vm} は停止したまま {source} に残っています: {why}。原因を解消してください。{kept}。",
    OfflineNotTakenBack { vm, source, why, tries } = "VM {vm} は {source} で停止していますが、準備したものをまだ取り消せていません: {why}。両方のホストとエージェントが動作していることを確認してください。{tries}。",
    OfflineNotFinished { vm, source, destination, why, tries } = "VM {vm} は {destination} で停止していますが、移行をまだ完了できていません: {why}。{source} で VM を起動しないでください。{tries}。",

    // A move of disks on one host
    StorageQueued { vm, host, wait } = "ホスト {host} の VM {vm} のディスクは後で移動します。{wait}。",
    StoragePreparing { vm, host } = "ホスト {host} の VM {vm} のディスクの移動を準備しています。",
    StorageCopying { vm, host, moved, count } = "ホスト {host} の VM {vm} のディスクをコピーしています。{count} 個のうち {moved} 個が新しいファイルを使用しています。",
    StorageFinishing { vm, host } = "ホスト {host} の VM {vm} は新しいファイルを使用しています。古いファイルを削除しています。",
    StorageTakenBack { vm, host } = "ホスト {host} の VM {vm} は古いファイルを使い続けます。ディスクのために準備したものを取り消しています。",
    StorageDone { vm, host } = "ホスト {host} の VM {vm} のディスクは、指定された場所にあります。",
    StorageHalf { vm, host, why, job } = "ホスト {host} の VM {vm} のディスクは一部だけが移動しました: {why}。どのディスクも完全な状態です。原因を解消してから `ferry job restart {job}` で再実行すると、残りを移動します。",
    StorageCancelled { vm, host, job } = "ホスト {host} の VM {vm} は古いファイルを使用しています: 移動はキャンセルされ、新しいファイルは削除されました。あらためて移動するには `ferry job restart {job}` を実行してください。",
    StorageFailed { vm, host, why, job } = "ホスト {host} の VM {vm} は古いファイルを使用しています: {why}。新しいファイルは削除されます。原因を解消してから `ferry job restart {job}` で再実行してください。",
    StorageStuck { vm, host, why, tries } = "ホスト {host} の VM {vm} のディスクの移動を、まだ終了できていません: {why}。{tries}。",

    // What any job waits for
    WaitsFor { what, job } = "待機中: {what}。`ferry job retry {job}` ですぐに再確認できます。いつまでも解消しない場合は、VM の所在を確認し（`ferry vm list`）、`ferry job dismiss {job}` でジョブを打ち切ってください。",
    WaitsForDatabase { why } = "サーバーのデータベースを読み書きできるようになるのを待っています: {why}。空き容量と正常なディスクを用意すると、ジョブは自動的に続行されます。",

    // One that was given up
    Dismissed { by, why, seen, left } = "{by} が残りの処理を打ち切りました: {why}。打ち切ったときの状態: {seen}。{left}。",
    LeftOldFiles = "ディスクは移動しましたが、古いファイルが残っている可能性があります",
    LeftNewFiles { vm } = "使用しているファイルを `ferry vm show {vm}` で確認してください。使用していない新しいファイルが残っている可能性があります",
    LeftAtSource { vm, source, destination } = "VM は {destination} に引き継がれました。{source} では起動せず、そこに残ったものを `virsh undefine {vm}` で削除してください",
    LeftFiles { source, destination } = "{destination} にファイルが残っている可能性があります。{source} では、エージェントが応答するまで VM が起動できないように保持されている可能性があります",
    LeftCopy { source, destination } = "VM が {source} にある場合、移行で残ったものは両方のホストが応答すると削除されます。それまで {destination} に一時停止したコピーが残っている可能性がありますが、動作させないでください",

    // One with parts
    Moved { done, count, others } = "{count} 台の VM のうち {done} 台が移行しました{others}。",
    OnTheirWay { count } = "移行中 {count} 台",
    Queued { count } = "待機中 {count} 台",
    Failed { count } = "失敗 {count} 台",
    Cancelled { count } = "キャンセル {count} 台",
    Stays { object, why } = "{object} は移行されません: {why}。",
    Overcommitted { what } = "{what}（`--overcommit` により許可）。",
    TryThoseAgain { job } = "移行しなかったものを再実行するには `ferry job restart {job}` を実行してください。",

    // Lines of the log
    Note { text } = "{text}",
    AcceptedSeveral { vms, by } = "受付: {vms} の一括移行（要求者: {by}）",
    AcceptedDrain { vms, by } = "受付: {vms} の退避（要求者: {by}）",
    AcceptedStorage { vm, host, by } = "受付: ホスト {host} での {vm} のディスクの移動（要求者: {by}）",
    AcceptedLive { vm, source, destination, by } = "受付: {source} から {destination} への {vm} のライブ移行（要求者: {by}）",
    AcceptedLiveVsm { vm, source, destination, by } = "受付: {source} から {destination} への {vm} のライブ移行（VSM、要求者: {by}）",
    AcceptedOffline { vm, source, destination, by } = "受付: {source} から {destination} への {vm} のオフライン移行（要求者: {by}）",
    Admitted = "順番が来ました",
    AttemptBegins { attempt } = "試行 {attempt} を開始します",
    StepBegins { step } = "{step}: 開始",
    StepDone { step } = "{step}: 完了",
    StepFailed { step, why } = "{step}: 失敗: {why}",
    StepUndone { step } = "{step}: 取り消し済み",
    StepNotUndone { step, why } = "{step}: 取り消せませんでした: {why}",
    CancelAsked { by } = "{by} がキャンセルを要求しました",
    Arrived { source, destination } = "VM のすべてが {destination} にありますが、{source} は VM がそこで動作しているとは伝えていません。所在が分からない間は、移行元の VM を解放しません",
    Accepted { by } = "{by} が現状を受け入れました。これ以上の処理は行いません",
    AcceptedAs { by, seen } = "{by} が現状を受け入れました。これ以上の処理は行いません: {seen}",
}
