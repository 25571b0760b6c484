{{/* Names, labels and what gateway, sidecar and injector have in common. */}}

{{- define "flagtap.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" }}
{{- end }}

{{/* What other names begin with. 40 characters at the most leave room for what they end with. */}}
{{- define "flagtap.fullname" -}}
{{- $name := .Values.fullnameOverride }}
{{- if not $name }}
{{- $name = contains (include "flagtap.name" .) .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name (include "flagtap.name" .)) }}
{{- end }}
{{- if gt (len $name) 40 }}
{{- /* The digest tells names apart that are cut to the same. */}}
{{- $name = printf "%s-%s" ($name | trunc 31 | trimAll "-.") ($name | sha256sum | trunc 8) }}
{{- end }}
{{- $name }}
{{- end }}

{{/* What cannot work whatever else is rendered. Every file begins with it: in which order they are rendered is Helm's business. */}}
{{- define "flagtap.checks" -}}
{{- include "flagtap.nulls" . }}
{{- if eq (toString .Values.enabled) "false" }}
{{- fail "enabled is false, and the chart is rendered all the same: the parent chart's dependency has no `condition: flagtap.enabled`" }}
{{- end }}
{{- /* A Service's name is stricter than a release's, and than that of a ConfigMap, which is all that sidecars need. */}}
{{- $name := include "flagtap.fullname" . }}
{{- if and (or (ne .Values.mode "none") .Values.injector.enabled) (not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" $name)) }}
{{- fail (printf "%s, from the release's name, cannot be the name of a Service: that begins with a letter and has letters, digits and hyphens only. Set fullnameOverride, or name the release otherwise" $name) }}
{{- end }}
{{- if gt (int .Values.autoscaling.minReplicas) (int .Values.autoscaling.maxReplicas) }}
{{- fail "autoscaling.minReplicas is greater than autoscaling.maxReplicas" }}
{{- end }}
{{- $monitors := or (and .Values.metrics.serviceMonitor (ne .Values.mode "none")) (and .Values.injector.enabled (or .Values.metrics.serviceMonitor .Values.metrics.podMonitor)) }}
{{- if and .Values.networkPolicy.enabled (not .Values.networkPolicy.metrics) $monitors }}
{{- fail "networkPolicy.metrics is empty, so that networkPolicy.enabled keeps Prometheus from every pod that metrics.serviceMonitor and metrics.podMonitor send it to here. Name your Prometheus there, such as `- namespaceSelector: { matchLabels: { kubernetes.io/metadata.name: monitoring } }`" }}
{{- end }}
{{- include "flagtap.further" . }}
{{- include "flagtap.notOurs" (dict "name" "podLabels" "given" .Values.podLabels) }}
{{- include "flagtap.notOurs" (dict "name" "podAnnotations" "given" .Values.podAnnotations) }}
{{- include "flagtap.notOurs" (dict "name" "metrics.labels" "given" .Values.metrics.labels) }}
{{- end }}

{{/* Refuses further variables, volumes and mounts that are there already: Kubernetes refuses such a pod, or the last one wins. */}}
{{- define "flagtap.further" -}}
{{- range .Values.extraEnv }}
{{- if or (eq .name "TMPDIR") (hasKey ($.Values.secrets | default dict) .name) }}
{{- fail (printf "extraEnv has %s, which the chart sets; leave it out" .name) }}
{{- end }}
{{- end }}
{{- range .Values.extraVolumes }}
{{- if has .name (list "flagtap-config" "flagtap-data" "flagtap-secrets") }}
{{- fail (printf "extraVolumes has %s, which is a volume of the chart's; give it another name" .name) }}
{{- end }}
{{- end }}
{{- range .Values.extraVolumeMounts }}
{{- if has (.mountPath | default "" | clean) (list "/etc/flagtap" "/data" "/run/secrets/flagtap") }}
{{- fail (printf "extraVolumeMounts has %s, where the chart mounts a volume of its own; mount it elsewhere (what waits goes to persistence or sidecar.dataVolume)" .mountPath) }}
{{- end }}
{{- end }}
{{- end }}

{{/*
Values that are null, as a key is below which everything is commented out: Helm takes their defaults away. Where these are
nothing, or off, null is the same. Where there is nothing that null could mean, it is refused.
*/}}
{{- define "flagtap.nulls" -}}
{{- $values := .Values }}
{{- range $path := list
  "mode" "configChange" "gracePeriodSeconds" "replicas"
  "image" "image.repository" "image.pullPolicy"
  "persistence" "persistence.size"
  "autoscaling.minReplicas" "autoscaling.maxReplicas" "autoscaling.targetCPU"
  "drainOrphans.within"
  "podDisruptionBudget" "podDisruptionBudget.enabled" "podDisruptionBudget.maxUnavailable"
  "serviceAccount" "serviceAccount.create"
  "service" "service.type" "service.port" "service.sessionAffinity"
  "networkPolicy.clients"
  "sidecar" "sidecar.native" "sidecar.applicationSeconds" "sidecar.dataSize"
  "injector.replicas" "injector.address" "injector.failurePolicy" "injector.namespaceSelector"
}}
{{- $keys := splitList "." $path }}
{{- $section := gt (len $keys) 1 | ternary (index $values (first $keys)) $values }}
{{- if and $section (kindIs "invalid" (index $section (last $keys))) }}
{{- fail (printf "%s is null, which takes its default away. Leave the key out to have the default, or give it a value" $path) }}
{{- end }}
{{- end }}
{{- range list "autoscaling" "drainOrphans" "ingress" "httpRoute" "networkPolicy" "metrics" "injector" }}
{{- if kindIs "invalid" (index $values .) }}
{{- $_ := set $values . dict }}
{{- end }}
{{- end }}
{{- end }}

{{/* Refuses labels and annotations that the chart sets: a key that is there twice is no YAML, and selectors rely on ours. */}}
{{- define "flagtap.notOurs" -}}
{{- $name := .name }}
{{- range $key, $_ := .given }}
{{- if or (hasPrefix "flagtap.dev/" $key) (has $key (list "app.kubernetes.io/name" "app.kubernetes.io/instance" "app.kubernetes.io/component" "app.kubernetes.io/version" "app.kubernetes.io/managed-by" "helm.sh/chart" "grafana_dashboard")) }}
{{- fail (printf "%s has %s, which the chart sets; leave it out" $name $key) }}
{{- end }}
{{- end }}
{{- end }}

{{- define "flagtap.selector" -}}
app.kubernetes.io/name: {{ include "flagtap.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{- define "flagtap.labels" -}}
{{ include "flagtap.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "flagtap.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}
{{- end }}

{{- define "flagtap.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- .Values.serviceAccount.name | default (include "flagtap.fullname" .) }}
{{- else }}
{{- required "serviceAccount.name is needed where serviceAccount.create is false" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{/* The Secret whose keys are the variables of `config`; empty if there is none. */}}
{{- define "flagtap.secretName" -}}
{{- if and .Values.secrets .Values.existingSecret }}
{{- fail "secrets and existingSecret are both given; keep one" }}
{{- end }}
{{- if .Values.secrets }}{{ include "flagtap.fullname" . }}{{ else }}{{ .Values.existingSecret | default "" }}{{ end }}
{{- end }}

{{/* flagtap's own shutdown.grace: five seconds are for Kubernetes to notice that it ended. */}}
{{- define "flagtap.grace" -}}
{{- if lt (int .Values.gracePeriodSeconds) 10 }}
{{- fail "gracePeriodSeconds is under 10, which leaves no time to deliver" }}
{{- end }}
{{- printf "%ds" (sub (int .Values.gracePeriodSeconds) 5) }}
{{- end }}

{{/* config.yaml of the chart's settings (in "base") and of `config`, which overrules them where it may. */}}
{{- define "flagtap.config" -}}
{{- $given := deepCopy (.root.Values.config | default dict) }}
{{- /* Null is not given: merged, it would take away what the chart sets. */}}
{{- range $section := list $given (kindIs "map" $given.queue | ternary $given.queue dict) }}
{{- range $key, $value := $section }}
{{- if kindIs "invalid" $value }}
{{- $_ := unset $section $key }}
{{- end }}
{{- end }}
{{- end }}
{{- if not $given.environments }}
{{- fail "config.environments is empty: say whose events are exported, and in config.destinations where to (config.example.yaml has every key)" }}
{{- end }}
{{- if ($given.shutdown).grace }}
{{- fail "config.shutdown.grace is given by gracePeriodSeconds; set that instead" }}
{{- end }}
{{- with $given.telemetry }}
{{- if or (not (hasSuffix ":8031" .)) (hasPrefix "127." .) (hasPrefix "[::1]" .) }}
{{- fail (printf "config.telemetry (%s) is not where probes, Services and monitors go: port 8031 of an address that is reached from without, such as [::]:8031" .) }}
{{- end }}
{{- else }}
{{- $_ := unset $given "telemetry" }}
{{- end }}
{{- $grace := trimSuffix "s" (include "flagtap.grace" .root) | int64 }}
{{- $reserve := ($given.shutdown).reserve | default "2s" | toString }}
{{- if regexMatch "^[0-9]+(ms|[smhd])$" $reserve }}
{{- $unit := index (dict "ms" 1 "s" 1000 "m" 60000 "h" 3600000 "d" 86400000) (regexFind "[a-z]+$" $reserve) }}
{{- if ge (mul (regexFind "^[0-9]+" $reserve) $unit) (mul $grace 1000) }}
{{- fail (printf "config.shutdown.reserve (%s) is a part of shutdown.grace, which is gracePeriodSeconds less five (%ds); raise gracePeriodSeconds" $reserve $grace) }}
{{- end }}
{{- end }}
{{- $base := dict "telemetry" "0.0.0.0:8031" "shutdown" (dict "grace" (include "flagtap.grace" .root)) }}
{{- $config := mergeOverwrite $base .base $given }}
{{- $listen := include "flagtap.listen" (dict "root" .root "default" .base.listen) | fromYaml }}
{{- if $listen.tls }}
{{- $_ := set $config "listen" $listen }}
{{- else }}
{{- $_ := set $config "listen" $listen.address }}
{{- end }}
{{- if not (hasSuffix ":8030" $listen.address) }}
{{- fail "config.listen has another port than 8030, where Services and sidecars expect it; service.port is for the Service's own" }}
{{- end }}
{{- $queue := kindIs "map" $config.queue | ternary $config.queue dict }}
{{- with ($queue.sled).path }}
{{- $path := isAbs . | ternary . (printf "/data/%s" .) | clean }}
{{- if not (or (contains "${" .) (hasPrefix "/data/" $path)) }}
{{- fail (printf "config.queue.sled.path (%s) is not below /data, where the volume is; leave it out, or give a folder there" .) }}
{{- end }}
{{- end }}
{{- toYaml $config }}
{{- end }}

{{/* `config.listen` in its long form, with the address that the chart chooses ("default") where none is given. */}}
{{- define "flagtap.listen" -}}
{{- $given := (.root.Values.config).listen }}
{{- if not (kindIs "map" $given) }}
{{- $given = dict "address" $given }}
{{- end }}
{{- toYaml (set (deepCopy $given) "address" ($given.address | default .default)) }}
{{- end }}

{{/* What the relay speaks towards SDKs. */}}
{{- define "flagtap.scheme" -}}
{{- if (include "flagtap.listen" (dict "root" . "default" "") | fromYaml).tls }}https{{ else }}http{{ end }}
{{- end }}

{{/* Bytes of a size as Kubernetes (4Gi) or flagtap (1GiB) writes it; nothing where it is neither, such as a variable. */}}
{{- define "flagtap.bytes" -}}
{{- if regexMatch "^[0-9]+([.][0-9]+)?([KMGTPE]i|[kKMGTPE])?B?$" (toString .) }}
{{- $unit := regexFind "[A-Za-z]*$" (toString .) | trimSuffix "B" }}
{{- $base := hasSuffix "i" $unit | ternary 1024 1000 }}
{{- $bytes := regexFind "^[0-9.]+" (toString .) | float64 }}
{{- range until (get (dict "k" 1 "K" 1 "M" 2 "G" 3 "T" 4 "P" 5 "E" 6) (trimSuffix "i" $unit) | default 0 | int) }}
{{- $bytes = mulf $bytes $base }}
{{- end }}
{{- printf "%.0f" $bytes }}
{{- end }}
{{- end }}

{{/* Refuses a volume ("size", the value "name") that a full queue of a rendered configuration ("config") would fill. */}}
{{- define "flagtap.fits" -}}
{{- $queue := (fromYaml .config).queue }}
{{- if and (kindIs "map" $queue) .size }}
{{- $limit := $queue.max_bytes | default "1GiB" }}
{{- $size := include "flagtap.bytes" .size }}
{{- $bytes := include "flagtap.bytes" $limit }}
{{- if and $size $bytes (not (hasKey $queue "memory")) (lt (float64 $size) (mulf 2 (float64 $bytes))) }}
{{- fail (printf "%s (%s) is less than twice queue.max_bytes (%v), so that dead letters or the quarantine could fill the volume; raise it, or lower config.queue.max_bytes" .name (toString .size) $limit) }}
{{- end }}
{{- end }}
{{- end }}

{{- define "flagtap.gateway.config" -}}
{{- $base := dict "listen" "0.0.0.0:8030" "queue" (dict "sled" (dict "path" "/data/queue")) }}
{{- include "flagtap.config" (dict "root" . "base" $base) }}
{{- end }}

{{/* What every container of flagtap has but for its arguments, probes, resources and mounts. */}}
{{- define "flagtap.container" -}}
{{- if not .Values.podSecurityContext }}
{{- fail "podSecurityContext is null or empty; set those of its keys to null that your cluster chooses itself, such as runAsUser" }}
{{- end -}}
image: {{ include "flagtap.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
{{- end }}

{{/* Restricted, whatever the pod says: a sidecar's pod is another's. */}}
{{- define "flagtap.securityContext" -}}
allowPrivilegeEscalation: false
capabilities: { drop: [ALL] }
readOnlyRootFilesystem: true
runAsNonRoot: true
{{- range list "runAsUser" "runAsGroup" }}
{{- if not (kindIs "invalid" (index $.Values.podSecurityContext .)) }}
{{ . }}: {{ index $.Values.podSecurityContext . }}
{{- end }}
{{- end }}
seccompProfile: { type: RuntimeDefault }
{{- end }}

{{/* Variables. The queue's tools copy parts to TMPDIR, and there is one place to write. */}}
{{- define "flagtap.env" -}}
- name: TMPDIR
  value: /data
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "flagtap.volumeMounts" -}}
- name: flagtap-config
  mountPath: /etc/flagtap
  readOnly: true
- name: flagtap-data
  mountPath: /data
{{- if include "flagtap.secretName" . }}
- name: flagtap-secrets
  mountPath: /run/secrets/flagtap
  readOnly: true
{{- end }}
{{- with .Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Volumes but for the data's; "config" is the ConfigMap's name, "secret" the Secret's. */}}
{{- define "flagtap.volumes" -}}
- name: flagtap-config
  configMap:
    name: {{ .config | quote }}
{{- with .secret }}
- name: flagtap-secrets
  secret:
    secretName: {{ . | quote }}
{{- end }}
{{- with .root.Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Annotations that change when the pods must restart; empty where nothing needs it. */}}
{{- define "flagtap.checksums" -}}
{{- $annotations := dict }}
{{- if eq .root.Values.configChange "restart" }}
{{- $_ := set $annotations "flagtap.dev/config-checksum" (.config | sha256sum) }}
{{- end }}
{{- if .root.Values.secrets }}
{{- $_ := set $annotations "flagtap.dev/secrets-checksum" (toJson .root.Values.secrets | sha256sum) }}
{{- end }}
{{- with $annotations }}{{ toYaml . }}{{ end }}
{{- end }}
